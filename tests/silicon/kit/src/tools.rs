//! Where a vendor's tool is: on the PATH, or where it is usually installed.

use std::path::{Path, PathBuf};

/// Folders by a pattern whose parts may end in `*`.
fn matching(pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        found = match part.split_once('*') {
            None => found.into_iter().map(|folder| folder.join(part)).filter(|path| path.exists()).collect(),
            Some((start, end)) => {
                let mut next = Vec::new();
                for folder in &found {
                    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
                    next.extend(entries.map(|entry| entry.path()).filter(|path| {
                        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                        name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
                    }));
                }
                next.sort();
                next.reverse(); // the newest version first
                next
            }
        };
    }
    found
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join(name));
    let usual = [
        "/usr/local/cuda/bin",
        "/usr/local/cuda*/bin",
        "/usr/local/cuda*/compute-sanitizer",
        "/opt/nvidia/nsight-compute/*",
        "/usr/local/cuda*/nsight-compute-*",
        "/usr/local/nvidia/bin",
        "/opt/cuda/bin",
    ];
    on_path
        .chain(usual.iter().flat_map(|pattern| matching(pattern)).map(|folder| folder.join(name)))
        .find(|path| is_program(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_found() {
        let folder = std::env::temp_dir().join(format!("silicon-kit-tools-{}", std::process::id()));
        for version in ["1.2", "1.3"] {
            std::fs::create_dir_all(folder.join(version)).unwrap();
        }
        let found = matching(&format!("{}/1.*", folder.display()));
        assert_eq!(found, [folder.join("1.3"), folder.join("1.2")]);
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(find("sh").is_some() && find("no-such-tool-anywhere").is_none());
    }
}
