//! Copies the first-party plugins into OUT_DIR, from where maturin puts them into the wheel as `aios/_plugins`.

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let source = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../../plugins");
    let target = Path::new(&env::var("OUT_DIR").expect("cargo sets it")).join("_plugins");
    println!("cargo::rerun-if-changed={}", source.display());
    println!("cargo::rerun-if-changed=build.rs");
    // A plugin that was removed must not live on in the next wheel.
    match fs::remove_dir_all(&target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => copy(&source, &target),
    }
}

fn copy(source: &Path, target: &Path) -> io::Result<()> {
    fs::create_dir_all(target)?;
    for entry in fs::read_dir(source)? {
        let entry = entry?;
        let name = entry.file_name();
        let kind = entry.file_type()?;
        if name == "__pycache__" || name.to_string_lossy().starts_with('.') {
            continue;
        }
        if kind.is_dir() {
            copy(&entry.path(), &target.join(name))?;
        } else if kind.is_file() {
            fs::copy(entry.path(), target.join(name))?;
        }
    }
    Ok(())
}
