//! The rooms of ARCHITECTURE.md: no two files import each other, be it by way of others, and in `src` every import goes down.
#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// `src`, from the bottom up: a room imports from those before it alone.
const ROOMS: [&str; 21] = [
    "error",
    "counts",
    "margin",
    "row_loss",
    "options",
    "builder",
    "output",
    "problem",
    "composed",
    "cpu",
    "cuda",
    "op",
    "loss",
    "sharded",
    "classifier",
    "row_margins",
    "schedule",
    "reference",
    "companions",
    "metrics",
    "lib",
];

/// Files of a crate by module path (`cpu::plan`; the root is the empty path), each with its text.
type Files = BTreeMap<String, String>;
/// Who imports from whom.
type Imports = BTreeMap<String, BTreeSet<String>>;

/// Reads a crate's files from its root file's folder, as `mod name;` declares them.
fn files(root: &Path) -> Files {
    fn add(files: &mut Files, module: &str, file: &Path, children: &Path) {
        let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let text = code(&text);
        for (name, elsewhere) in declared(&text) {
            let in_folder = children.join(&name).join("mod.rs");
            let beside = children.join(&name).with_extension("rs");
            let child = match elsewhere {
                Some(path) => file.parent().expect("a file has a folder").join(path),
                None if in_folder.exists() => in_folder,
                None => beside,
            };
            let module = if module.is_empty() { name.clone() } else { format!("{module}::{name}") };
            add(files, &module, &child, &children.join(&name));
        }
        files.insert(module.to_string(), text);
    }
    let mut files = Files::new();
    add(&mut files, "", root, root.parent().expect("a root file has a folder"));
    files
}

/// A file's text without comments and without what only tests compile.
fn code(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let start = line.trim_start();
        if start == "#[cfg(test)]" {
            // A module in place ends at its closing brace, at the same depth; a declaration is one line.
            let depth = line.len() - start.len();
            let item = lines.next().unwrap_or_default();
            if item.trim_end().ends_with('{') {
                let end = format!("{}}}", " ".repeat(depth));
                for inner in lines.by_ref() {
                    if inner == end {
                        break;
                    }
                }
            }
            continue;
        }
        if !start.starts_with("//") {
            kept.push_str(line.split(" // ").next().unwrap_or(line));
            kept.push('\n');
        }
    }
    kept
}

/// The modules that a text declares, each with the file that a `path` attribute names for it.
fn declared(text: &str) -> Vec<(String, Option<String>)> {
    let mut found = Vec::new();
    let mut elsewhere = None;
    for line in text.lines().map(str::trim) {
        if let Some(path) = line.strip_prefix("#[path = \"") {
            elsewhere = path.strip_suffix("\"]").map(str::to_string);
            continue;
        }
        let item = line.strip_prefix("pub(crate) ").or_else(|| line.strip_prefix("pub ")).unwrap_or(line);
        if let Some(name) = item.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')) {
            found.push((name.to_string(), elsewhere.take()));
        }
    }
    found
}

/// The paths of a `use` tree: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(tree: &str, prefix: &str, out: &mut Vec<String>) {
    let mut depth = 0;
    let mut start = 0;
    let mut branch = |part: &str| {
        let part = part.trim();
        match part.split_once('{') {
            Some((head, rest)) => {
                let rest = rest.trim_end().strip_suffix('}').expect("a tree's braces match");
                expand(rest, &format!("{prefix}{}", head.trim()), out);
            }
            None if part.is_empty() => {}
            None => out.push(format!("{prefix}{}", part.split(" as ").next().unwrap_or(part).trim())),
        }
    };
    for (at, c) in tree.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                branch(&tree[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    branch(&tree[start..]);
}

/// Every path that a file names: those of its `use` items, and those that begin with `crate::` or `super::` anywhere.
fn paths(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let words: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for (at, _) in words.match_indices("use ") {
        let before = words[..at].chars().next_back();
        if before.is_none_or(|c| c == ' ') {
            let tree = words[at + 4..].split(';').next().unwrap_or_default();
            expand(tree, "", &mut found);
        }
    }
    for start in ["crate::", "super::"] {
        for (at, _) in words.match_indices(start) {
            if words[..at].ends_with(|c: char| c.is_alphanumeric() || c == ':' || c == '_') {
                continue;
            }
            let path = words[at..].split(|c: char| !(c.is_alphanumeric() || c == ':' || c == '_')).next();
            found.push(path.unwrap_or_default().trim_end_matches(':').to_string());
        }
    }
    found
}

/// The file that holds what `path` names, seen from `module`; None for another crate's.
fn holder(files: &Files, module: &str, path: &str) -> Option<String> {
    let mut at: Vec<&str> = module.split("::").filter(|part| !part.is_empty()).collect();
    let mut parts = path.split("::").map(str::trim).peekable();
    match *parts.peek()? {
        "crate" => {
            parts.next();
            at.clear();
        }
        "self" => {
            parts.next();
        }
        "super" => {
            while parts.peek() == Some(&"super") {
                parts.next();
                at.pop();
            }
        }
        // A child of this file, or another crate.
        first => {
            let child = if module.is_empty() { first.to_string() } else { format!("{module}::{first}") };
            files.get(&child)?;
        }
    }
    for part in parts {
        let next = at.iter().copied().chain([part]).collect::<Vec<_>>().join("::");
        if !files.contains_key(&next) {
            break;
        }
        at.push(part);
    }
    Some(at.join("::"))
}

fn imports(files: &Files) -> Imports {
    let of = |(module, text): (&String, &String)| {
        let held: BTreeSet<String> = paths(text).iter().filter_map(|path| holder(files, module, path)).collect();
        (module.clone(), held.into_iter().filter(|other| other != module).collect())
    };
    files.iter().map(of).collect()
}

/// A circle, if there is one: files of which each imports the next.
fn circle(imports: &Imports) -> Option<Vec<String>> {
    fn walk(imports: &Imports, at: &str, way: &mut Vec<String>, done: &mut BTreeSet<String>) -> Option<Vec<String>> {
        if let Some(start) = way.iter().position(|module| module == at) {
            way.push(at.to_string());
            return Some(way[start..].to_vec());
        }
        if done.contains(at) {
            return None;
        }
        way.push(at.to_string());
        for next in imports.get(at).into_iter().flatten() {
            if let Some(found) = walk(imports, next, way, done) {
                return Some(found);
            }
        }
        way.pop();
        done.insert(at.to_string());
        None
    }
    let mut done = BTreeSet::new();
    imports.keys().find_map(|module| walk(imports, module, &mut Vec::new(), &mut done))
}

/// The crate roots of this workspace, as far as they are there: the published crate has no emulator.
fn roots() -> Vec<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut roots: Vec<PathBuf> = ["src", "tests/emulator/src", "tests/emulator/driver/src"]
        .iter()
        .map(|folder| here.join(folder).join("lib.rs"))
        .collect();
    roots.push(here.join("tests/silicon/kit/src/main.rs"));
    for folder in ["examples", "benches", "tests"] {
        for entry in std::fs::read_dir(here.join(folder)).into_iter().flatten().flatten() {
            let path = entry.path();
            let main = path.join("main.rs");
            roots.push(if main.exists() { main } else { path });
        }
    }
    roots.into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "rs") && path.exists()).collect()
}

#[test]
fn nothing_imports_in_a_circle() {
    let mut read = 0;
    for root in roots() {
        let files = files(&root);
        read += files.len();
        if let Some(circle) = circle(&imports(&files)) {
            let named = |module: &String| if module.is_empty() { "(the root)".to_string() } else { module.clone() };
            panic!("{}: {}", root.display(), circle.iter().map(named).collect::<Vec<_>>().join(" → "));
        }
    }
    assert!(read > 60, "{read} files: the search has lost its way");
}

#[test]
fn every_import_goes_down() {
    let files = files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs"));
    let floor = |module: &str| {
        let room = if module.is_empty() { "lib" } else { module.split("::").next().unwrap_or_default() };
        ROOMS.iter().position(|known| *known == room).unwrap_or_else(|| panic!("no room {room} in this test's list"))
    };
    let imports = imports(&files);
    assert!(imports.values().map(BTreeSet::len).sum::<usize>() > 60, "the imports of src are more than that");
    for (module, held) in &imports {
        for other in held {
            assert!(floor(other) <= floor(module), "{module} imports from {other}, which is above it");
        }
    }
}

#[test]
fn a_circle_shows() {
    let files = |texts: &[(&str, &str)]| -> Files {
        texts.iter().map(|(module, text)| (module.to_string(), code(text))).collect()
    };
    let straight = [
        ("", "mod a; mod b; pub use a::{A, b::B};"),
        (
            "a",
            "use crate::b::{self, Thing as Other};\n#[cfg(test)]\nmod tests {\n    use super::*;\n    use crate::c;\n}\n",
        ),
        ("b", "mod deep; use deep::Deep; // use crate::a;\n"),
        ("b::deep", "use candle_core::Tensor;"),
    ];
    assert_eq!(circle(&imports(&files(&straight))), None);
    let faulty = [
        ("a direct import", "b", "use crate::a::A;"),
        ("in a tree", "b", "use crate::{x::Y, a::{A, C}};"),
        ("a path in code", "b", "fn f() { let _ = crate::a::A::new(); }"),
        ("by way of the root", "b", "use crate::A;"),
        ("from a child", "b::deep", "use super::super::a::A;"),
        ("from a child to its parent", "b::deep", "use super::Thing;"),
    ];
    for (what, module, text) in faulty {
        let mut files = files(&straight);
        let own = files.get_mut(module).unwrap();
        own.push_str(text);
        assert!(circle(&imports(&files)).is_some(), "{what} is not seen");
    }
}
