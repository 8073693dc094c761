//! The environment as table and as property.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};

use proptest::prelude::*;

use super::*;

fn read(pairs: &[(&str, &str)]) -> Result<Config, String> {
    let mut environment =
        HashMap::from([("fprocess", "cat"), ("mode", "http"), ("upstream_url", "http://127.0.0.1:3000")]);
    environment.extend(pairs.iter().copied());
    Config::read(|name| environment.get(name).map(ToString::to_string)).map_err(|error| error.to_string())
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn defaults_are_those_of_of_watchdog() {
    let config = read(&[]).unwrap();
    assert_eq!((config.port, config.metrics_port, config.max_inflight), (8080, Some(8081), 0));
    assert_eq!(config.read_timeout, Some(seconds(30)));
    assert_eq!(config.write_timeout, Some(seconds(30)));
    assert_eq!(config.exec_timeout, Some(seconds(30)));
    assert_eq!(config.healthcheck_interval, seconds(30));
    assert_eq!(config.lock_file(), PathBuf::from("/tmp/.lock"));
    assert_eq!(
        config.logs,
        LogConfig { prefix: true, line_limit: Some(65_536), gives_up: false, call_id: false }
    );
    assert!(config.address.is_unspecified() && config.gpu.is_none() && config.buffer_body.is_none());
    assert!(config.warnings.is_empty() && !config.suppress_lock && config.ready_path.is_none());
}

#[test]
fn of_watchdog_takes_a_free_port_for_one_that_is_no_number_and_holds_an_answer_of_any_length() {
    assert!(read(&[("port", "http")]).unwrap_err().contains("port is \"http\""));
    assert_eq!(read(&[]).unwrap().output_limit, Some(OUTPUT));
    let config = read(&[("port", "http"), ("compat", "of-watchdog")]).unwrap();
    assert_eq!((config.port, config.output_limit, config.warnings.len()), (0, None, 1));
    let config = read(&[("output_limit", "5"), ("compat", "of-watchdog")]).unwrap();
    assert_eq!(config.output_limit, Some(5));
}

#[test]
fn the_second_name_of_a_variable_wins() {
    let config =
        read(&[("function_process", "node index.js"), ("http_upstream_url", "http://127.0.0.1:4000")]);
    let config = config.unwrap();
    assert_eq!(config.command(), ("node", vec!["index.js"]));
    assert_eq!(config.upstream.unwrap().authority(), "127.0.0.1:4000");
}

#[test]
fn an_integer_is_seconds_and_a_duration_is_itself() {
    let config =
        read(&[("exec_timeout", "1"), ("read_timeout", "1m30s"), ("write_timeout", "250ms")]).unwrap();
    assert_eq!(config.exec_timeout, Some(seconds(1)));
    assert_eq!(config.read_timeout, Some(seconds(90)));
    assert_eq!(config.write_timeout, Some(Duration::from_millis(250)));
    assert_eq!(config.healthcheck_interval, Duration::from_millis(250));
}

#[test]
fn an_exec_timeout_of_zero_or_less_is_no_limit() {
    for value in ["0", "0s", "-1", "-5s"] {
        assert_eq!(read(&[("exec_timeout", value)]).unwrap().exec_timeout, None, "{value}");
    }
}

#[test]
fn what_of_watchdog_ignores_is_ignored_with_a_warning() {
    for (name, value) in
        [("read_timeout", "bogus"), ("max_inflight", "-1"), ("max_inflight", "x"), ("prefix_logs", "maybe")]
    {
        let config = read(&[(name, value)]).unwrap();
        assert_eq!(config.read_timeout, Some(seconds(30)));
        assert_eq!(config.max_inflight, 0);
        assert!(config.logs.prefix);
        let [warning] = &config.warnings[..] else { panic!("one warning for {name}") };
        assert!(warning.starts_with(&format!("{name} is {value:?}, allowed is ")), "{warning}");
    }
}

#[test]
fn what_cannot_work_is_refused_in_one_line() {
    let cases = [
        (
            "fprocess",
            "",
            "provide a \"function_process\" or \"fprocess\" environmental variable for your function",
        ),
        (
            "mode",
            "afterburn",
            "mode is \"afterburn\", allowed is streaming, serializing, http, static, openwhisk or actionloop",
        ),
        ("compat", "classic", "compat is \"classic\", allowed is of-watchdog"),
        ("content_type", "a\nb", "content_type is \"a\\nb\", allowed is a media type such as text/plain"),
        (
            "restart_policy",
            "maybe",
            "restart_policy is \"maybe\", allowed is no, on-failure, on-failure:COUNT or always",
        ),
        ("upstream_url", "", "upstream_url is \"\", allowed is a URL such as http://127.0.0.1:3000"),
        (
            "upstream_url",
            "ftp://x",
            "upstream_url is \"ftp://x\", allowed is a URL such as http://127.0.0.1:3000",
        ),
        ("write_timeout", "0", "write_timeout is \"0\", allowed is more than 0s, or less for no limit"),
        ("log_buffer_size", "x", "log_buffer_size is \"x\", allowed is 1 or more bytes, or -1 for no limit"),
        ("port", "x", "port is \"x\", allowed is 0 to 65535"),
        ("metrics_port", "70000", "metrics_port is \"70000\", allowed is 0 to 65535"),
        ("listen_address", "localhost", "listen_address is \"localhost\", allowed is an IP address"),
        ("GPUFN_POLICY", "lax", "GPUFN_POLICY is \"lax\", allowed is strict or open"),
        (
            "GPUFN_BINDING",
            "../x",
            "GPUFN_BINDING is \"../x\", allowed is 1 to 32 lower-case letters, digits and dashes",
        ),
    ];
    for (name, value, wanted) in cases {
        assert_eq!(read(&[(name, value)]).unwrap_err(), wanted);
    }
}

#[test]
fn without_a_mode_there_is_a_process_for_each_request() {
    let environment = HashMap::from([("fprocess", "cat")]);
    let config = Config::read(|name| environment.get(name).map(ToString::to_string)).unwrap();
    assert_eq!((config.mode, config.upstream, config.compat), (Mode::Streaming, None, false));
    assert_eq!(config.content_type, "application/octet-stream");
}

#[test]
fn files_and_actions_need_no_function() {
    for mode in ["static", "openwhisk", "actionloop"] {
        let environment = HashMap::from([("mode", mode)]);
        let config = Config::read(|name| environment.get(name).map(ToString::to_string)).unwrap();
        assert_eq!(config.mode.name(), mode);
        // An action's lines are the platform's to read, and it has the platform's time.
        assert_eq!(config.logs.prefix, mode == "static");
        assert_eq!(config.exec_timeout, Some(seconds(if mode == "static" { 30 } else { 60 })));
    }
    for mode in ["streaming", "serializing"] {
        let environment = HashMap::from([("mode", mode)]);
        assert!(Config::read(|name| environment.get(name).map(ToString::to_string)).is_err());
    }
}

#[test]
fn variables_of_the_classic_watchdog_are_named_and_nothing_else() {
    let config =
        read(&[("write_debug", "true"), ("marshal_request", "true"), ("cgi_headers", "true")]).unwrap();
    let words: Vec<_> = config.warnings.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(words, ["marshal_request", "write_debug"]);
    assert!(read(&[("combine_output", "true")]).unwrap().combine_output);
}

#[test]
fn port_wins_over_the_upper_case_one() {
    assert_eq!(read(&[("PORT", "9998")]).unwrap().port, 9998);
    assert_eq!(read(&[("PORT", "9998"), ("port", "9999")]).unwrap().port, 9999);
    assert_eq!(read(&[("metrics_port", "0")]).unwrap().metrics_port, None);
}

#[test]
fn on_knative_nothing_is_waited_for_before_the_listener_ends() {
    let config = read(&[("K_REVISION", "f-00001"), ("healthcheck_interval", "5s")]).unwrap();
    assert_eq!(config.healthcheck_interval, Duration::ZERO);
}

#[test]
fn flags_take_what_of_watchdog_takes() {
    for (value, wanted) in [("true", true), ("1", true), ("True", false), ("yes", false), ("false", false)] {
        let config = read(&[("suppress_lock", value), ("buffer_http", value)]).unwrap();
        assert_eq!((config.suppress_lock, config.buffer_body.is_some()), (wanted, wanted), "{value}");
    }
    assert!(read(&[("log_callid", "T")]).unwrap().logs.call_id);
    assert!(!read(&[("prefix_logs", "0")]).unwrap().logs.prefix);
}

#[test]
fn an_output_limit_of_zero_is_none() {
    for (pairs, wanted) in [
        (&[][..], Some(64 << 20)),
        (&[("output_limit", "1")][..], Some(1)),
        (&[("output_limit", "0")][..], None),
    ] {
        assert_eq!(read(pairs).unwrap().output_limit, wanted);
    }
}

#[test]
fn a_command_is_split_at_spaces_and_nothing_else() {
    let config = read(&[("fprocess", "sh -c \"echo  hi\"")]).unwrap();
    assert_eq!(config.command(), ("sh", vec!["-c", "\"echo", "hi\""]));
}

#[test]
fn the_readme_lists_exactly_the_variables_that_are_read() {
    // All that makes other variables count.
    let environment = HashMap::from([
        ("fprocess", "cat"),
        ("mode", "http"),
        ("upstream_url", "http://127.0.0.1:3000"),
        ("max_batch_size", "2"),
        ("http_buffer_req_body", "true"),
        ("jwt_auth", "true"),
        ("OPENFAAS_NAME", "f"),
        ("GPUFN_BINDING", "b"),
    ]);
    let asked = RefCell::new(BTreeSet::from(["buffer_http".to_string()]));
    let lookup = |name: &str| {
        asked.borrow_mut().insert(name.to_string());
        environment.get(name).map(ToString::to_string)
    };
    Config::read(lookup).unwrap();
    let readme = include_str!("../../README.md");
    let section = readme.split("## Variables\n").nth(1).unwrap();
    let rows =
        section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = rows.skip(2).filter_map(|row| row.split('|').nth(1));
    let listed = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(ToString::to_string);
    // Those that change nothing are in a sentence below the table.
    let classic = CLASSIC.iter().map(|(name, ..)| (*name).to_string());
    assert_eq!(asked.into_inner(), listed.chain(classic).collect());
}

proptest! {
    #[test]
    fn no_value_makes_the_reader_panic_or_write_two_lines(
        name in "(mode|upstream_url|port|PORT|metrics_port|listen_address|read_timeout|write_timeout|exec_timeout|\
                 healthcheck_interval|max_inflight|ready_path|log_buffer_size|GPUFN_POLICY|GPUFN_BINDING)",
        value in "\\PC{0,20}|-?[0-9]{1,22}(ms|s|m|h)?",
    ) {
        match read(&[(&name, &value)]) {
            Ok(config) => prop_assert!(config.warnings.iter().all(|line| !line.contains('\n'))),
            Err(error) => prop_assert!(!error.contains('\n'), "{error}"),
        }
    }
}
