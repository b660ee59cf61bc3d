use super::declare::Documented;
use super::*;
use crate::documented::assert_table;

fn refused(change: impl FnOnce(&mut Config)) -> String {
    let mut config = Config::new("set".into());
    change(&mut config);
    config.validate(&["p"]).unwrap_err().to_string()
}

#[test]
fn defaults_are_valid() {
    Config::new("set".into()).validate(&["a", "b"]).unwrap();
    assert_eq!(Config::new("set".into()).pool_size(3), 6);
}

#[test]
fn retry_keeps_the_values_of_its_setters() {
    let (first_delay, longest_delay) = (Duration::from_secs(1), Duration::from_secs(2));
    let retry = Retry::default().attempts(3).first_delay(first_delay).longest_delay(longest_delay);
    let retry = retry.halted_interval(Duration::from_secs(7));
    assert_eq!(retry, Retry { attempts: 3, first_delay, longest_delay, halted_interval: Some(Duration::from_secs(7)) });
    assert_eq!(retry.stay_halted().halted_interval, None);
}

#[test]
fn a_bound_itself_is_allowed() {
    let (millis, day) = (Duration::from_millis, Duration::from_secs(24 * 60 * 60));
    let least = Config {
        heartbeat_interval: millis(10),
        stale_worker_timeout: millis(30),
        session_loss_grace: Some(millis(10)),
        coordination_timeout: millis(100),
        poll_interval: millis(10),
        registration_wait: Duration::ZERO,
        event_poll: (millis(1), millis(1)),
        batch_size: 1,
        batch_time: millis(1),
        batch_bytes: Bytes(1),
        max_event_bytes: Bytes(1),
        pool_size: Some(2),
        retry: Retry::default().attempts(1).first_delay(millis(1)).longest_delay(millis(1)),
        ..Config::new("s".into())
    };
    least.validate(&["p"]).unwrap();
    let most = Config {
        heartbeat_interval: day / 3,
        stale_worker_timeout: day,
        session_loss_grace: Some(day),
        coordination_timeout: day,
        poll_interval: day,
        registration_wait: day,
        event_poll: (day, day),
        batch_size: 1_000_000,
        batch_time: day,
        pool_size: Some(10_000),
        ..Config::new("s".repeat(255))
    };
    most.validate(&["p"]).unwrap();
}

#[test]
fn invalid_options_are_named_with_value_and_bound() {
    let seconds = Duration::from_secs;
    for (message, parts) in [
        (refused(|c| c.replica_set = " ".into()), ["replica_set", "empty"]),
        (refused(|c| c.replica_set = "é".repeat(128)), ["replica_set", "256 bytes, 255 are allowed"]),
        (refused(|c| c.replica_set = "a\nb".into()), ["replica_set", "control characters"]),
        (
            refused(|c| c.stale_worker_timeout = seconds(14)),
            ["stale_worker_timeout is 14s", "3 × heartbeat_interval (5s)"],
        ),
        (refused(|c| c.heartbeat_interval = Duration::ZERO), ["heartbeat_interval is 0ns", "at least 10 ms"]),
        (
            refused(|c| c.session_loss_grace = Some(seconds(31))),
            ["session_loss_grace is 31s", "stale_worker_timeout (30s)"],
        ),
        (refused(|c| c.registration_wait = seconds(61)), ["registration_wait is 61s", "coordination_timeout (60s)"]),
        (refused(|c| c.poll_interval = seconds(61)), ["poll_interval is 61s", "coordination_timeout (60s)"]),
        (refused(|c| c.event_poll = (seconds(1), Duration::from_millis(5))), ["event_poll is 1s to 5ms", "minimum"]),
        (refused(|c| c.coordination_timeout = seconds(24 * 60 * 60 + 1)), ["coordination_timeout", "at most 24 h"]),
        (refused(|c| c.batch_size = 0), ["batch_size is 0", "at least 1"]),
        (refused(|c| c.batch_size = 1_000_001), ["batch_size is 1000001", "at most 1000000"]),
        (refused(|c| c.batch_time = Duration::ZERO), ["batch_time is 0ns", "at least 1 ms"]),
        (refused(|c| c.batch_time = seconds(24 * 60 * 60 + 1)), ["batch_time", "at most 24 h"]),
        (refused(|c| c.batch_bytes = Bytes(0)), ["batch_bytes is 0", "at least 1"]),
        (refused(|c| c.max_event_bytes = Bytes(0)), ["max_event_bytes is 0", "at least 1"]),
        (refused(|c| c.on_failure = OnFailure::park(0)), ["on_failure at_most is 0", "at least 1"]),
        (refused(|c| c.lanes = 0), ["lanes is 0", "1 to 64"]),
        (refused(|c| c.lanes = 65), ["lanes is 65", "1 to 64"]),
        (refused(|c| c.retry.attempts = 0), ["retry.attempts is 0", "at least 1"]),
        (
            refused(|c| c.retry.longest_delay = Duration::from_millis(1)),
            ["retry.longest_delay is 1ms", "first_delay (100ms)"],
        ),
        (refused(|c| c.names = Names::default().schema("a;b")), ["schema is \"a;b\"", "';' is not allowed"]),
    ] {
        for part in parts {
            assert!(message.contains(part), "{message:?} should contain {part:?}");
        }
    }
}

#[test]
fn the_pool_must_have_connections_for_all_lanes() {
    let config = Config { pool_size: Some(5), ..Config::new("set".into()) };
    config.validate_pool(2).unwrap();
    let message = config.validate_pool(3).unwrap_err().to_string();
    for part in ["pool_size is 5", "3 lanes of all projections × (1 connection to write + 1 to read ahead) = 6"] {
        assert!(message.contains(part), "{message:?} should contain {part:?}");
    }
}

#[test]
fn options_of_a_projection_are_refused_by_its_name() {
    let config = Config::new("set".into());
    let refused = |options: Options| config.settings_of("mails", &options, false).unwrap_err().to_string();
    for (message, parts) in [
        (refused(Options::default().lanes(0)), ["lanes of projection \"mails\" is 0", "1 to 64"]),
        (refused(Options::default().batch_size(0)), ["batch_size of projection \"mails\" is 0", "at least 1"]),
        (refused(Options::default().rate(0)), ["rate of projection \"mails\" is 0", "at least 1"]),
        (refused(Options::default().in_flight(2)), ["in_flight of projection \"mails\" is 2", "only a reaction"]),
        (refused(Options::default().in_flight(0)), ["in_flight of projection \"mails\" is 0", "between 1 and 256"]),
        (
            refused(Options::default().retry(Retry::default().attempts(0))),
            ["retry.attempts of projection \"mails\"", "1"],
        ),
        (
            refused(Options::default().on_failure(OnFailure::park(0))),
            ["on_failure at_most of projection \"mails\"", "1"],
        ),
    ] {
        for part in parts {
            assert!(message.contains(part), "{message:?} should contain {part:?}");
        }
    }
    let options = Options::default().in_flight(256).lanes(3);
    let settings = config.settings_of("mails", &options, true).unwrap();
    assert_eq!((settings.in_flight, settings.lanes, settings.bounds.events), (256, 3, config.batch_size));
}

#[test]
fn projections_must_exist_and_have_distinct_names() {
    let config = Config::new("set".into());
    for (projections, part) in
        [(&[][..], "at least one"), (&["a", ""], "empty"), (&["a", "b", "a"], "two projections have it")]
    {
        let message = config.validate(projections).unwrap_err().to_string();
        assert!(message.contains(part), "{message:?} should contain {part:?}");
    }
}

#[test]
fn the_readme_lists_the_options_as_declared() {
    let rows = Config::declared().map(|option| {
        let Documented { default, bounds, .. } = option.documented;
        format!("| `{}` | {default} | {bounds} | {} |\n", option.name, summary(option))
    });
    let heads = "| option | default | allowed | |\n|---|---|---|---|\n";
    assert_table("src/guide/tuning.md", "", &format!("{heads}{}", rows.collect::<String>()));
}

/// The first paragraph of an option's documentation.
fn summary(option: &Declared) -> String {
    let lines = option.documented.about.iter().map(|line| line.trim());
    let summary = lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    assert!(summary.ends_with('.'), "{}: {summary}", option.name);
    summary
}

#[test]
fn every_option_is_set_from_text() {
    let mut config = Config::new("set".into());
    let texts = [
        ("heartbeat_interval", "500ms"),
        ("stale_worker_timeout", "0.5m"),
        ("session_loss_grace", "off"),
        ("coordination_timeout", "1h"),
        ("poll_interval", "20s"),
        ("registration_wait", "0s"),
        ("database_wait", "100us"),
        ("leave_timeout", "30s"),
        ("ready_while_halted", "on"),
        ("event_poll", "2ms .. 50ms"),
        ("batch_size", "100"),
        ("batch_time", "30ms"),
        ("batch_bytes", "64KiB"),
        ("max_event_bytes", "1GiB"),
        ("on_failure", "park:7"),
        ("lanes", "3"),
        ("pool_size", "12"),
        ("retry.attempts", "2"),
        ("retry.first_delay", "1s"),
        ("retry.longest_delay", "2s"),
        ("retry.halted_interval", "off"),
    ];
    assert_eq!(texts.map(|(name, _)| name).to_vec(), Config::declared().map(|option| option.name).collect::<Vec<_>>());
    for (name, text) in texts {
        config.set(name, name, text).unwrap();
    }
    let (millis, secs) = (Duration::from_millis, Duration::from_secs);
    assert_eq!(config.heartbeat_interval, millis(500));
    assert_eq!(config.stale_worker_timeout, secs(30));
    assert_eq!(config.session_loss_grace, None);
    assert_eq!(config.coordination_timeout, secs(3600));
    assert_eq!(config.poll_interval, secs(20));
    assert_eq!(config.registration_wait, secs(0));
    assert_eq!(config.database_wait, Duration::from_micros(100));
    assert!(config.ready_while_halted);
    assert_eq!(config.event_poll, (millis(2), millis(50)));
    assert_eq!((config.batch_size, config.batch_bytes, config.max_event_bytes), (100, Bytes(64 << 10), Bytes(1 << 30)));
    assert_eq!(config.on_failure, OnFailure::park(7));
    assert_eq!((config.lanes, config.pool_size), (3, Some(12)));
    assert_eq!(config.retry, Retry::default().attempts(2).first_delay(secs(1)).longest_delay(secs(2)).stay_halted());
    config.set("session_loss_grace", "", "2s").unwrap();
    assert_eq!(config.session_loss_grace, Some(secs(2)));
    config.validate(&["a", "b"]).unwrap();
}

#[test]
fn units_of_durations_and_sizes_are_understood() {
    let duration = |text: &str| Duration::parse(text);
    assert_eq!(duration("1500us"), Some(Duration::from_micros(1500)));
    assert_eq!(duration("1.5ms"), Some(Duration::from_micros(1500)));
    assert_eq!(duration("2s"), Some(Duration::from_secs(2)));
    assert_eq!(duration("2m"), Some(Duration::from_secs(120)));
    assert_eq!(duration("2h"), Some(Duration::from_secs(7200)));
    assert_eq!(duration("99999999999999999999h"), None);
    let bytes = |text: &str| Bytes::parse(text).map(|Bytes(bytes)| bytes);
    assert_eq!(["7", "7B", "7KiB", "7MiB", "7GiB"].map(bytes), [7, 7, 7 << 10, 7 << 20, 7 << 30].map(Some));
    assert_eq!(["1.5MiB", "7MB", "99999999999999GiB"].map(bytes), [None; 3]);
}

#[test]
fn every_option_refuses_another_form_and_says_which_is_right() {
    let mut config = Config::new("set".into());
    for option in Config::declared() {
        for text in ["", "many", "1x", "-1", "1.2.3s"] {
            let error = config.set(option.name, "VARIABLE", text).unwrap_err().to_string();
            assert_eq!(error, format!("VARIABLE is {text:?}: it must be {}", option.form), "{}", option.name);
        }
    }
    let error = config.set("lane", "lane", "1").unwrap_err().to_string();
    assert!(error.contains("\"lane\"") && error.contains("lanes") && error.contains("retry.attempts"), "{error}");
}

#[test]
fn variables_are_in_upper_case() {
    assert_eq!(variable("ORCHESTRATOR_", "lanes"), "ORCHESTRATOR_LANES");
    assert_eq!(variable("A_", "retry.first_delay"), "A_RETRY_FIRST_DELAY");
}

/// A version that fails on its first events halts, and its pod becomes unready, before the next pod
/// is replaced.
#[test]
fn a_rollout_waits_for_a_version_that_halts() {
    let deployment = include_str!("../../examples/kubernetes/deployment.yaml");
    let number = |name: &str| -> u64 {
        let line = deployment.lines().filter_map(|line| line.trim().strip_prefix(name)).next_back();
        line.and_then(|line| line.strip_prefix(": ")?.parse().ok()).unwrap()
    };
    let Retry { attempts, first_delay, longest_delay, .. } = Retry::default();
    let delays = (0..attempts - 1).map(|failures| (first_delay * (1 << failures)).min(longest_delay));
    let halted_after: Duration = delays.sum();
    assert_eq!(halted_after, Duration::from_millis(12_700), "the comment says 13 s");
    // The last probe in the file is the one for readiness.
    let noticed_after = Duration::from_secs(number("periodSeconds") * number("failureThreshold"));
    assert_eq!(noticed_after, Duration::from_secs(6), "the comment says so");
    let to_join = Config::new("set".into()).registration_wait * 2;
    assert!(to_join + halted_after + noticed_after < Duration::from_secs(number("minReadySeconds")));
}

#[test]
fn no_error_repeats_the_password_of_a_misplaced_url() {
    let url = "postgres://u:hidden@a-host-with-a-name-longer-than-what-is-shown.example/d";
    let mut config = Config::new(url.to_owned());
    let replica_set = config.validate(&["p"]).unwrap_err();
    config.replica_set = "main".to_owned();
    let projection = config.validate(&[url]).unwrap_err();
    let value = config.set("lanes", "LANES", url).unwrap_err();
    let option = config.set(url, url, "1").unwrap_err();
    for error in [replica_set, projection, value, option] {
        let shown = format!("{error} {error:?}");
        assert!(shown.contains("u:***@") && !shown.contains("hidden"), "{shown}");
    }
}
