//! The instruction sets that the loops are compiled for, and the choice among them.

#![allow(unsafe_code)]

use std::sync::LazyLock;

use crate::code::{Coder, Metric, Query, Terms};
use crate::dots::Portable;
#[cfg(target_arch = "x86_64")]
use crate::dots::x86::Avx2;
use crate::fault::Result;
use crate::graph::{Allowed, Seen, Visited};
use crate::rows::Rows;
use crate::top::{Best, Candidate, Collector};

/// An instruction set that this machine has; the lower is the simpler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
            if has!("avx2") && has!("fma") {
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
}

/// A loop over `Dots` as a method of `Isa`, compiled once for each instruction set.
macro_rules! compiled {
    ($(#[$doc:meta])* $name:ident($($argument:ident: $kind:ty),*) $(-> $result:ty)?, $generic:path) => {
        impl Isa {
            $(#[$doc])*
            pub(crate) fn $name(self, $($argument: $kind),*) $(-> $result)? {
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx2,fma")]
                fn wide($($argument: $kind),*) $(-> $result)? {
                    use $generic as generic;
                    generic::<Avx2>($($argument),*)
                }
                use $generic as generic;
                match self.0 {
                    Level::Portable => generic::<Portable>($($argument),*),
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: an `Isa` of this level comes from `reachable` only, which found avx2 and fma.
                    Level::Avx2 => unsafe { wide($($argument),*) },
                }
            }
        }
    };
}

compiled!(
    /// `scan::scan`.
    scan(rows: &Rows, first: usize, last: usize, query: &Query, into: &mut Collector), crate::scan::scan
);
compiled!(
    /// `scan::tiles`.
    tiles(rows: &Rows, first: usize, last: usize, queries: &[(&[f32], Query)], into: &mut [Collector]), crate::scan::tiles
);
compiled!(
    /// `scan::visit`.
    visit(rows: &Rows, slots: &[u32], query: &Query, into: &mut Collector), crate::scan::visit
);
compiled!(
    /// `scan::rescore`.
    rescore(rows: &Rows, metric: Metric, query: &(&[f32], Query), candidates: &[Candidate], k: usize) -> Best,
    crate::scan::rescore
);
compiled!(
    /// `graph::walk`.
    walk(
        rows: &Rows, query: &Query, linked: usize, effort: usize, allowed: Option<&Allowed>, visited: &mut Visited
    ) -> Vec<Seen>,
    crate::graph::walk
);
compiled!(
    /// `graph::scores`.
    scores(rows: &Rows, query: &Query, slots: &[u32]) -> Vec<Seen>, crate::graph::scores
);
compiled!(
    /// `graph::chosen`.
    chosen(rows: &Rows, coder: &Coder, middle: &Query, candidates: &[Seen], most: usize) -> Vec<u32>,
    crate::graph::chosen
);
compiled!(
    /// `code::encode`.
    encode(coder: &Coder, x: &[f32], scratch: &mut Vec<f32>, code: &mut [u8]) -> Result<Terms>, crate::code::encode
);
compiled!(
    /// `code::query`.
    query(coder: &Coder, x: &[f32]) -> Result<Query>, crate::code::query
);
