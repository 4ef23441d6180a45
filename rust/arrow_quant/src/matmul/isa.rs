//! The instruction sets that the kernels are compiled for, and the choice among them.

use std::sync::LazyLock;

use super::activations::{self, Activations, Form, Rows};
use super::integer;
use super::kernel::{Inputs, Narrow, Registers, Scratch, Tiling, Wide, dot, many, single};
use super::matrix::{Matrix, Residual};
use super::single;
#[cfg(target_arch = "x86_64")]
use super::words::x86::Ymm;
use super::words::{Plain, Words};

/// An instruction set that this machine has; the lower is the simpler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Isa(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

/// Names the highest level to use: scalar or avx2.
const VARIABLE: &str = "AIOS_ISA";

impl Isa {
    /// Those that this machine has, the lowest first.
    #[must_use]
    pub fn reachable() -> Vec<Isa> {
        let mut reachable = vec![Isa(Level::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") && has!("f16c") {
                reachable.push(Isa(Level::Avx2));
            }
        }
        reachable
    }

    /// The highest one, unless the variable `AIOS_ISA` names a lower one.
    #[must_use]
    pub fn here() -> Isa {
        static HERE: LazyLock<Isa> = LazyLock::new(|| {
            let named = std::env::var(VARIABLE).unwrap_or_default();
            let reachable = Isa::reachable();
            let found = reachable.iter().rposition(|isa| isa.name() == named);
            reachable[found.unwrap_or(reachable.len() - 1)]
        });
        *HERE
    }

    /// What `AIOS_ISA` calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Portable => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
        }
    }

    /// How `rows` rows of x are cut here.
    pub(crate) fn tiling(self, rows: usize) -> Tiling {
        let height_max = match self.0 {
            Level::Portable => Narrow::HEIGHT_MAX,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => Wide::HEIGHT_MAX,
        };
        Tiling { rows, height_max }
    }

    /// How `rows` rows of integers of this form are cut here.
    pub(crate) fn tiling_of(self, form: Form, rows: usize) -> Tiling {
        let height_max = match self.0 {
            Level::Portable => Plain::height_max(form),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => Ymm::height_max(form),
        };
        Tiling { rows, height_max }
    }

    /// Puts the sums of all rows of x over one panel into `scratch.sums`.
    pub(crate) fn panel(self, w: &Matrix<'_>, panel: usize, inputs: Inputs<'_>, scratch: &mut Scratch) {
        match self.0 {
            Level::Portable => panel_of::<Narrow>(w, panel, inputs, scratch),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` of this level comes from `reachable` only, which found avx2, fma and f16c.
            Level::Avx2 => unsafe { panel_avx2(w, panel, inputs, scratch) },
        }
    }

    /// Puts the sums of all rows of integer x over one panel into `scratch.sums`.
    pub(crate) fn integer_panel(
        self,
        w: &Matrix<'_>,
        panel: usize,
        x: &Activations,
        low: &[f32],
        scratch: &mut integer::Scratch,
    ) {
        match self.0 {
            Level::Portable => integer_panel_of::<Plain, Narrow>(w, panel, x, low, scratch),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` of this level comes from `reachable` only, which found avx2, fma and f16c.
            Level::Avx2 => unsafe { integer_panel_avx2(w, panel, x, low, scratch) },
        }
    }

    /// Turns rows of x into integers.
    pub(crate) fn quantise(self, rows: &mut Rows<'_>) {
        match self.0 {
            Level::Portable => activations::quantise::<Plain>(rows),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` of this level comes from `reachable` only, which found avx2, fma and f16c.
            Level::Avx2 => unsafe { quantise_avx2(rows) },
        }
    }

    /// x (m, columns) times the residual's right factor: (m, rank).
    pub(crate) fn project(self, residual: Residual<'_>, x: &[f32]) -> Vec<f32> {
        match self.0 {
            Level::Portable => project_of::<Narrow>(residual, x),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` of this level comes from `reachable` only, which found avx2, fma and f16c.
            Level::Avx2 => unsafe { project_avx2(residual, x) },
        }
    }
}

#[inline(always)]
fn panel_of<R: Registers>(w: &Matrix<'_>, panel: usize, inputs: Inputs<'_>, scratch: &mut Scratch) {
    match (w.packed().layout.bits(), inputs.tiling.rows) {
        (8, 1) => single::<8, 4, R>(w, panel, inputs, scratch),
        (4, 1) => single::<4, 8, R>(w, panel, inputs, scratch),
        (_, 1) => single::<2, 16, R>(w, panel, inputs, scratch),
        (8, _) => many::<8, 4, R>(w, panel, inputs, scratch),
        (4, _) => many::<4, 8, R>(w, panel, inputs, scratch),
        _ => many::<2, 16, R>(w, panel, inputs, scratch),
    }
}

#[inline(always)]
fn integer_panel_of<V: Words, R: Registers>(
    w: &Matrix<'_>,
    panel: usize,
    x: &Activations,
    low: &[f32],
    scratch: &mut integer::Scratch,
) {
    match (w.packed().layout.bits(), x.tiling.rows) {
        (8, 1) => single::single::<V, R, 8>(w, panel, x, low, scratch),
        (4, 1) => single::single::<V, R, 4>(w, panel, x, low, scratch),
        (_, 1) => single::single::<V, R, 2>(w, panel, x, low, scratch),
        (8, _) => integer::panel::<V, R, 8>(w, panel, x, low, scratch),
        (4, _) => integer::panel::<V, R, 4>(w, panel, x, low, scratch),
        _ => integer::panel::<V, R, 2>(w, panel, x, low, scratch),
    }
}

#[inline(always)]
fn project_of<R: Registers>(residual: Residual<'_>, x: &[f32]) -> Vec<f32> {
    let columns = residual.columns();
    let rows = residual.right.chunks_exact(columns);
    x.chunks_exact(columns).flat_map(|x| rows.clone().map(|right| dot::<R>(right, x))).collect()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn panel_avx2(w: &Matrix<'_>, panel: usize, inputs: Inputs<'_>, scratch: &mut Scratch) {
    panel_of::<Wide>(w, panel, inputs, scratch);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn integer_panel_avx2(
    w: &Matrix<'_>,
    panel: usize,
    x: &Activations,
    low: &[f32],
    scratch: &mut integer::Scratch,
) {
    integer_panel_of::<Ymm, Wide>(w, panel, x, low, scratch);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn quantise_avx2(rows: &mut Rows<'_>) {
    activations::quantise::<Ymm>(rows);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn project_avx2(residual: Residual<'_>, x: &[f32]) -> Vec<f32> {
    project_of::<Wide>(residual, x)
}
