//! Checks the links of the README and the guide: each has a target on GitHub, in the package and on
//! docs.rs.
//!
//! The pages are Markdown files, which GitHub shows, and modules, which docs.rs shows. A path that
//! is right for one is wrong for the other. So the pages use reference links, such as
//! `[the log][logs]`, and this test generates their targets. Each page ends with the targets for
//! GitHub. `src/guide/links.md`, which rustdoc reads before each page, has the targets for docs.rs.
//! If a label has two definitions, the first one applies. `UPDATE_DOCS=1` writes both lists.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const GUIDE: &str = "src/guide";
const LINKS: &str = "src/guide/links.md";
const DOCS: &str = "https://docs.rs/pupsourcing-orchestrator/latest/pupsourcing_orchestrator/";
const SOURCE: &str = "https://docs.rs/crate/pupsourcing-orchestrator/latest/source/";

/// Files, each with the label by which pages refer to it.
const FILES: [(&str, &str); 17] = [
    ("again", "benches/results/upserts_append_again.md"),
    ("architecture", "ARCHITECTURE.md"),
    ("batch_size.svg", "benches/results/batch_size.svg"),
    ("changelog", "CHANGELOG.md"),
    ("rebuild", "benches/results/rebuild.md"),
    ("contributing", "CONTRIBUTING.md"),
    ("deployment.yaml", "examples/kubernetes/deployment.yaml"),
    ("examples", "examples"),
    ("folds-figures", "benches/results/folds.md"),
    ("grafana", "examples/grafana/README.md"),
    ("kubernetes", "examples/kubernetes/README.md"),
    ("latency.svg", "benches/results/latency.svg"),
    ("networkpolicy.yaml", "examples/kubernetes/networkpolicy.yaml"),
    ("pauses.svg", "benches/results/pauses.svg"),
    ("report", "benches/results/report.md"),
    ("roles.sql", "examples/postgres/roles.sql"),
    ("rules.yml", "examples/grafana/rules.yml"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The names of the guide's pages.
fn pages() -> BTreeSet<String> {
    let files = fs::read_dir(root().join(GUIDE)).unwrap().map(|entry| entry.unwrap().path());
    let pages = files.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let names = pages.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned());
    names.filter(|name| name != "links").collect()
}

/// The text of a page without its definitions of links, and these definitions.
fn split(text: &str) -> (&str, &str) {
    let is_definition = |line: &str| line.starts_with('[') && line.contains("]: ");
    let body = text.trim_end().rsplit('\n').find(|line| !is_definition(line) && !line.is_empty());
    let end = body.map_or(0, |line| line.as_ptr() as usize - text.as_ptr() as usize + line.len());
    (&text[..end], text[end..].trim())
}

/// The text without blocks of code.
fn prose(text: &str) -> String {
    let mut is_code = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        if !is_code && !is_fence {
            lines.push(line);
        }
    }
    lines.join("\n")
}

/// A link or an image: the label that it refers to, or its own target.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Link {
    Label(String),
    Target(String),
}

/// All links of the prose: `[text][label]`, `[label]` and `[text](target)`.
fn links(prose: &str) -> BTreeSet<Link> {
    let mut found = BTreeSet::new();
    let mut rest = prose;
    while let Some(at) = rest.find(['[', '`']) {
        if rest[at..].starts_with('`') {
            // Inline code. Within brackets it belongs to the link.
            let ticks = rest[at..].len() - rest[at..].trim_start_matches('`').len();
            let code = &rest[at + ticks..];
            rest = code.find(&rest[at..at + ticks]).map_or("", |end| &code[end + ticks..]);
            continue;
        }
        let Some((text, after)) = bracketed(&rest[at..], '[', ']') else { break };
        rest = after;
        if let Some((target, after)) = bracketed(after, '(', ')') {
            (_, rest) = (found.insert(Link::Target(target.to_owned())), after);
        } else if let Some((label, after)) = bracketed(after, '[', ']') {
            (_, rest) = (found.insert(Link::Label(label.to_owned())), after);
        } else {
            found.insert(Link::Label(text.to_owned()));
        }
    }
    found
}

/// The text between the first character and the one that closes it, and the text after that.
fn bracketed(text: &str, open: char, close: char) -> Option<(&str, &str)> {
    let inner = text.strip_prefix(open)?;
    let (within, after) = inner.split_once(close)?;
    (!within.contains(open)).then_some((within, after))
}

/// The target of a label: a path within the repository or a URL, and the target for rustdoc.
fn target(label: &str, pages: &BTreeSet<String>) -> Option<(String, String)> {
    if let Some(item) = label.strip_prefix('`').and_then(|item| item.strip_suffix('`')) {
        let name = item.rsplit("::").next().unwrap_or(item);
        return Some((format!("{DOCS}?search={name}"), format!("crate::{item}")));
    }
    if pages.contains(label) {
        return Some((format!("{GUIDE}/{label}.md"), format!("crate::guide::{label}")));
    }
    match label {
        "probes" => return Some(("src/http/probes.md".to_owned(), "crate::MetricsServer#the-probes".to_owned())),
        "http_commands" => {
            return Some(("src/http/commands.md".to_owned(), "crate::MetricsServer#commands".to_owned()));
        }
        "status" => return Some(("src/http/status.md".to_owned(), "crate::MetricsServer#status".to_owned())),
        "all_metrics" => return Some(("src/metrics/metrics.md".to_owned(), "crate::Metrics".to_owned())),
        "settings" => return Some(("src/cli/settings.md".to_owned(), "crate::cli#settings".to_owned())),
        _ => {}
    }
    let (_, path) = FILES.iter().find(|(name, _)| *name == label)?;
    Some(((*path).to_owned(), format!("{SOURCE}{path}")))
}

/// The path from a folder of the repository, with slashes.
fn relative(folder: &str, path: &str) -> String {
    if path.starts_with("https://") {
        return path.to_owned();
    }
    match path.strip_prefix(&format!("{folder}/")) {
        Some(below) => below.to_owned(),
        None if folder.is_empty() => path.to_owned(),
        None => format!("{}{path}", "../".repeat(folder.split('/').count())),
    }
}

#[track_caller]
fn assert_written(file: &str, wanted: &str) {
    if fs::read_to_string(root().join(file)).is_ok_and(|text| text == wanted) {
        return;
    }
    assert!(env::var_os("UPDATE_DOCS").is_some(), "the links of {file} are out of date: UPDATE_DOCS=1 writes them");
    fs::write(root().join(file), wanted).unwrap();
}

#[test]
fn every_label_has_a_target_on_github_and_on_docs_rs() {
    let pages = pages();
    let mut for_rustdoc = BTreeSet::new();
    let files = pages.iter().map(|page| format!("{GUIDE}/{page}.md")).chain(["README.md".to_owned()]);
    for file in files {
        let text = read(&file);
        let (body, _) = split(&text);
        let folder = Path::new(&file).parent().unwrap().to_str().unwrap();
        let mut definitions = BTreeSet::new();
        for link in links(&prose(body)) {
            let Link::Label(label) = link else { continue };
            let Some((path, rustdoc)) = target(&label, &pages) else {
                panic!("{file}: there is no page, item or file called [{label}]")
            };
            definitions.insert(format!("[{label}]: {}\n", relative(folder, &path)));
            for_rustdoc.insert(format!("[{label}]: {rustdoc}\n"));
        }
        assert_written(&file, &format!("{}\n\n{}", body.trim_end(), definitions.into_iter().collect::<String>()));
    }
    let for_rustdoc: String = for_rustdoc.into_iter().collect();
    assert_written(LINKS, &for_rustdoc);
}

/// The files that are published.
fn packaged() -> BTreeSet<String> {
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let arguments = ["package", "--list", "--allow-dirty", "--offline", "--locked"];
    let output = Command::new(cargo).current_dir(root()).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// A heading's anchor, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_file_that_a_link_names_is_published() {
    let packaged = packaged();
    let documents = packaged.iter().filter(|file| {
        Path::new(file).extension().is_some_and(|extension| extension == "md")
            && !file.starts_with("benches/results/")
            && *file != LINKS
    });
    let mut checked = 0;
    for file in documents {
        let text = read(file);
        let folder = Path::new(file).parent().unwrap();
        let own = links(&prose(&text)).into_iter().filter_map(|link| match link {
            Link::Target(target) => Some(target),
            Link::Label(_) => None,
        });
        let defined = split(&text).1.lines().filter_map(|line| Some(line.split_once("]: ")?.1.to_owned()));
        let images = ["src=\"", "srcset=\""].into_iter().flat_map(|attribute| text.split(attribute).skip(1));
        let images = images.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()));
        let is_page = file.starts_with(GUIDE);
        for target in own
            .inspect(|target| {
                // A relative path would be wrong on docs.rs.
                assert!(
                    !is_page || target.starts_with("http") || target.starts_with('#'),
                    "{file}: a page needs a reference link, not ({target})"
                );
            })
            .chain(defined)
            .chain(images)
        {
            let target = target.trim_matches(['<', '>']);
            if target.starts_with("http") || target.starts_with("crate::") || target.contains("::") {
                continue;
            }
            let (path, wanted) = target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
            let path = if path.is_empty() { file.clone() } else { within(&folder.join(path)) };
            let is_folder = packaged.iter().any(|file| file.starts_with(&format!("{path}/")));
            assert!(packaged.contains(&path) || is_folder, "{file}: ({target}) is not published");
            if let Some(wanted) = wanted {
                let is_there = read(&path)
                    .lines()
                    .any(|line| line.starts_with('#') && anchor(line.trim_start_matches('#').trim()) == wanted);
                assert!(is_there, "{file}: {path} has no heading #{wanted}");
            }
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked}");
}

/// The path without `..`.
fn within(path: &Path) -> String {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => _ = clean.pop(),
            part => clean.push(part),
        }
    }
    clean.to_str().unwrap().to_owned()
}

#[test]
fn links_are_found() {
    let found = links("a [b][c], [d](e) and [`F::g`], `[no]`, ``x ` [no]`` [h]");
    let labels = ["c", "`F::g`", "h"].map(|label| Link::Label(label.to_owned()));
    assert_eq!(found, labels.into_iter().chain([Link::Target("e".to_owned())]).collect());
    assert_eq!(split("a\n\n[b]\n\n[c]: d\n[e]: f\n"), ("a\n\n[b]", "[c]: d\n[e]: f"));
    assert_eq!(relative("src/guide", "src/guide/logs.md"), "logs.md");
    assert_eq!(relative("src/guide", "ARCHITECTURE.md"), "../../ARCHITECTURE.md");
    assert_eq!(anchor("What can go wrong?"), "what-can-go-wrong");
}
