//! The settings of the program: each is a flag and an environment variable.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt;

use log::LevelFilter;

use super::failure::Failure;
use crate::config::{Config, variable};
use crate::error::redacted;

/// The prefix of the variables of the library's options.
const PREFIX: &str = "ORCHESTRATOR_";

pub(super) const DATABASE_URL: &str = "DATABASE_URL";
pub(super) const REPLICA_SET: &str = "REPLICA_SET";
pub(super) const METRICS_ADDR: &str = "METRICS_ADDR";
pub(super) const STATUS_PAGE: &str = "STATUS_PAGE";
pub(super) const STATUS_HOSTS: &str = "STATUS_HOSTS";
pub(super) const OPERATOR_TOKEN: &str = "ORCHESTRATOR_OPERATOR_TOKEN";
pub(super) const OWNER_URL: &str = "ORCHESTRATOR_OWNER_URL";
pub(super) const LOG: &str = "RUST_LOG";

/// Takes the place of the default in a setting that has none.
pub(super) const REQUIRED: &str = "required";

/// A setting, with what `--help` shows of it.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    /// The setting's environment variable.
    pub(super) variable: String,
    /// The setting's flag, without the dashes; `None` for a secret that must not be among the
    /// arguments, which other users of the host can see.
    pub(super) flag: Option<String>,
    /// The name of the library's option that the setting sets, if it sets one.
    pub(super) option: Option<&'static str>,
    pub(super) default: String,
    /// The allowed values.
    pub(super) allowed: String,
    /// The description in one sentence.
    pub(super) summary: String,
    /// The rest of the description.
    pub(super) more: String,
}

/// Returns all settings: those of the program, then the library's options.
pub(super) fn all() -> Vec<Setting> {
    let own = [
        (
            DATABASE_URL,
            "database-url",
            REQUIRED,
            "a URL such as postgres://user:password@host:5432/database?sslmode=require",
            "Where the events are.",
        ),
        (REPLICA_SET, "replica-set", "main-projections", "1 to 255 bytes", "The workers that share the work."),
        (
            METRICS_ADDR,
            "metrics-addr",
            "0.0.0.0:9090",
            "an address and a port",
            "Where metrics, probes and the status page are served; port 0 takes any free one, and the bound address is logged.",
        ),
        (
            STATUS_PAGE,
            "status-page",
            "on",
            "on or off",
            "Whether the status page and /status are served beside the metrics.",
        ),
        (
            STATUS_HOSTS,
            "status-hosts",
            "none",
            "names such as ops.example,status.example",
            "Host names under which both are served, besides localhost and IP addresses.",
        ),
        (
            OPERATOR_TOKEN,
            "",
            "none",
            "at least 16 printable ASCII characters",
            "The token with which operators give commands by HTTP and on the status page; without one, no command is taken.",
        ),
        (
            OWNER_URL,
            "owner-url",
            "the database URL",
            "a URL of the same database",
            "With which role a worker prepares a rebuild and switches to it: the one that owns the tables of the read models.",
        ),
        (
            LOG,
            "log",
            "info, or warn where results are written",
            "error, warn, info, debug, trace, off, also by module",
            "What is logged.",
        ),
    ];
    let own = own.map(|(variable, flag, default, allowed, summary)| Setting {
        variable: variable.to_owned(),
        flag: Some(flag.to_owned()).filter(|flag| !flag.is_empty()),
        option: None,
        default: default.to_owned(),
        allowed: allowed.to_owned(),
        summary: summary.to_owned(),
        more: String::new(),
    });
    let options = Config::declared().map(|option| {
        let lines: Vec<&str> = option.documented.about.iter().map(|line| line.trim()).collect();
        let mut paragraphs = lines.split(|line| line.is_empty()).map(|lines| plain(&lines.join(" ")));
        let summary = paragraphs.next().unwrap_or_default();
        let (form, bounds) = (option.form, option.documented.bounds);
        Setting {
            variable: variable(PREFIX, option.name),
            flag: Some(option.name.replace(['_', '.'], "-")),
            option: Some(option.name),
            default: option.documented.default.to_owned(),
            allowed: if form == bounds { form.to_owned() } else { format!("{form}; {bounds}") },
            summary,
            more: paragraphs.collect::<Vec<_>>().join("\n\n"),
        }
    });
    own.into_iter().chain(options).collect()
}

/// Returns the variables that have the prefix and are not a setting, most likely because they are
/// misspelt. Leaves out the variables that Kubernetes sets in every container for a Service named
/// `orchestrator`.
pub(super) fn unknown(variables: impl Iterator<Item = OsString>) -> Vec<String> {
    let known: BTreeSet<_> = all().into_iter().map(|setting| setting.variable).collect();
    let of_service = ["SERVICE_", "PORT"].map(|part| format!("{PREFIX}{part}"));
    variables
        .filter_map(|variable| variable.into_string().ok())
        .filter(|variable| variable.starts_with(PREFIX) && !known.contains(variable))
        .filter(|variable| !of_service.iter().any(|part| variable.starts_with(part)))
        .collect()
}

/// Removes the Markdown from a text of the documentation:
/// `[heartbeats_only](Self::heartbeats_only)` becomes `heartbeats_only`.
fn plain(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some((before, (words, after))) =
        rest.split_once('[').and_then(|(before, link)| Some((before, link.split_once(']')?)))
    {
        shown = shown + before + words;
        rest = after.strip_prefix('(').and_then(|target| Some(target.split_once(')')?.1)).unwrap_or(after);
    }
    (shown + rest).replace('`', "")
}

/// The values that were set, by the variable's name.
#[derive(Default)]
pub(super) struct Settings(BTreeMap<String, Given>);

struct Given {
    /// The flag or the variable, for errors.
    called: String,
    text: String,
}

/// Without the values: there are secrets among them.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Settings {
    /// Takes each setting from its flag, or from the environment.
    pub(super) fn of<'a>(
        settings: &[Setting],
        flag: impl Fn(&str) -> Option<&'a OsStr>,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Failure> {
        let mut all = BTreeMap::new();
        for Setting { variable, flag: name, .. } in settings {
            let by_flag = name.as_ref().and_then(|name| Some((format!("--{name}"), flag(variable)?)));
            let given = match by_flag {
                Some((called, text)) => Some(Given { text: utf8(text, &called)?, called }),
                None => environment(variable)
                    .map(|text| utf8(&text, variable))
                    .transpose()?
                    .map(|text| Given { called: variable.clone(), text: text.trim().to_owned() })
                    // An empty token is a secret that is missing where it was expected.
                    .filter(|given| !given.text.is_empty() || variable == OPERATOR_TOKEN),
            };
            all.extend(given.map(|given| (variable.clone(), given)));
        }
        Ok(Self(all))
    }

    pub(super) fn text(&self, variable: &str) -> Option<&str> {
        self.0.get(variable).map(|given| given.text.as_str())
    }

    /// Returns the database URL, or an error if it is not set.
    pub(super) fn database_url(&self) -> Result<&str, Failure> {
        self.text(DATABASE_URL).ok_or_else(|| {
            Failure::Setting(
                "DATABASE_URL is not set: it says where the events are, such as \
                 postgres://user:password@host:5432/database?sslmode=require"
                    .to_owned(),
            )
        })
    }

    /// Returns the value of a setting that is `on` or `off`.
    pub(super) fn switch(&self, variable: &str) -> Result<Option<bool>, Failure> {
        let Some(Given { called, text }) = self.0.get(variable) else { return Ok(None) };
        match text.as_str() {
            "on" => Ok(Some(true)),
            "off" => Ok(Some(false)),
            _ => Err(Failure::Setting(format!("{called} is {:?}: on or off is needed", redacted(text)))),
        }
    }

    /// Returns what to log: levels, such as `info` or `warn,shop=debug`.
    pub(super) fn log_filter(&self) -> Result<Option<&str>, Failure> {
        let Some(Given { called, text }) = self.0.get(LOG) else { return Ok(None) };
        let is_level =
            |part: &str| part.split_once('=').map_or(part, |(_, level)| level).parse::<LevelFilter>().is_ok();
        if text.split(',').map(str::trim).all(is_level) {
            return Ok(Some(text));
        }
        let levels = "error, warn, info, debug, trace or off, or such levels by module, as in warn,shop=debug";
        Err(Failure::Setting(format!("{called} is {:?}: it must be {levels}", redacted(text))))
    }

    /// Returns the library's options that were set: the name of each, the flag or variable that set
    /// it, and its text.
    pub(super) fn options(&self) -> impl Iterator<Item = (&'static str, &str, &str)> {
        Config::declared().filter_map(|option| {
            let given = self.0.get(&variable(PREFIX, option.name))?;
            Some((option.name, given.called.as_str(), given.text.as_str()))
        })
    }
}

fn utf8(text: &OsStr, called: &str) -> Result<String, Failure> {
    text.to_str().map(str::to_owned).ok_or_else(|| Failure::Setting(format!("{called} is not valid UTF-8")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;
    use crate::documented::assert_table;

    #[test]
    fn the_documentation_lists_the_settings() {
        let rows = all().into_iter().map(|setting| {
            let Setting { variable, flag, default, allowed, summary, .. } = setting;
            let flag = flag.map_or_else(|| "none".to_owned(), |flag| format!("`--{flag}`"));
            format!("| `{variable}` | {flag} | {default} | {allowed} | {summary} |\n")
        });
        let heads = "| variable | flag | default | allowed | |\n|---|---|---|---|---|\n";
        assert_table("src/cli/settings.md", "", &format!("{heads}{}", rows.collect::<String>()));
    }

    #[test]
    fn marks_of_the_documentation_are_not_shown() {
        for (text, shown) in [
            ("At most `lanes`.", "At most lanes."),
            ("A [hint](crate::EventStore::hint) does.", "A hint does."),
            ("See [`Retry`] or [a](b).", "See Retry or a."),
            ("no [end", "no [end"),
        ] {
            assert_eq!(plain(text), shown);
        }
    }

    #[test]
    fn a_misspelt_variable_is_found() {
        let variables = ["ORCHESTRATOR_LANE", "ORCHESTRATOR_LANES", "ORCHESTRATOR_SERVICE_HOST", "ORCHESTRATOR_PORT"];
        let others = ["DATABASE_URLS", "orchestrator_lane", "ORCHESTRATOR_"];
        let all = variables.into_iter().chain(others).map(OsString::from);
        assert_eq!(unknown(all), ["ORCHESTRATOR_LANE", "ORCHESTRATOR_"]);
    }

    fn settings(flag: Option<&str>, variable: Option<&OsStr>) -> Result<Settings, Failure> {
        Settings::of(
            &all(),
            |name| flag.filter(|_| name == STATUS_PAGE).map(OsStr::new),
            |name| variable.filter(|_| name == STATUS_PAGE).map(OsStr::to_owned),
        )
    }

    #[test]
    fn a_flag_wins_and_an_empty_variable_is_ignored() {
        let page = |flag, variable: Option<&str>| {
            settings(flag, variable.map(OsStr::new)).unwrap().switch(STATUS_PAGE).map_err(|error| error.to_string())
        };
        assert_eq!(page(None, None), Ok(None));
        assert_eq!(page(None, Some(" ")), Ok(None));
        assert_eq!(page(None, Some(" off ")), Ok(Some(false)));
        assert_eq!(page(Some("on"), Some("off")), Ok(Some(true)));
        assert_eq!(page(Some(""), None).unwrap_err(), "--status-page is \"\": on or off is needed");
        assert_eq!(page(None, Some("1")).unwrap_err(), "STATUS_PAGE is \"1\": on or off is needed");
        let token = |text: &str| {
            let given = |name: &str| (name == OPERATOR_TOKEN).then(|| text.into());
            Settings::of(&all(), |_| None, given).unwrap().text(OPERATOR_TOKEN).map(str::to_owned)
        };
        assert_eq!(token(" ").as_deref(), Some(""), "an empty token is refused later");
        let odd = settings(None, Some(OsStr::from_bytes(&[0xff]))).unwrap_err().to_string();
        assert_eq!(odd, "STATUS_PAGE is not valid UTF-8");
    }
}
