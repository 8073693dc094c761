//! Start, drain and end, and what happens to requests and to the function's process meanwhile.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use tokio::net::TcpStream;

use crate::fixture::{bare, in_front_of, is_alive, until_gone, with_process};
use crate::function::Function;

/// The function's process, from the line that it writes when it listens.
async fn function_pid(watchdog: &crate::fixture::Watchdog) -> u32 {
    let line = watchdog.line(" listens, ").await;
    line.split("function ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn sigterm_ends_health_at_once_and_requests_only_after_the_interval() {
    let function = Function::start().await;
    let mut watchdog = in_front_of(&function.url).env("healthcheck_interval", "1s").start().await;
    let start = Instant::now();
    let in_flight = tokio::spawn(watchdog.request("GET", "/sleep/2500").send());
    function.until_busy(1).await;
    watchdog.signal("TERM");
    watchdog.until_status("/_/health", StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(watchdog.status("/_/ready").await, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!watchdog.lock_file().exists());
    assert_eq!(watchdog.status("/x").await, StatusCode::OK);
    watchdog.signal("TERM");
    while TcpStream::connect(watchdog.authority()).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(start.elapsed() >= Duration::from_secs(1) && !in_flight.is_finished());
    assert_eq!(in_flight.await.unwrap().unwrap().status(), StatusCode::OK);
    assert_eq!(watchdog.ended().await.code(), Some(0));
    assert!(start.elapsed() >= Duration::from_millis(2500));
}

#[tokio::test]
async fn a_function_that_knows_no_sigterm_still_answers_what_is_in_flight() {
    let mut watchdog = with_process().env("healthcheck_interval", "100ms").start().await;
    let pid = function_pid(&watchdog).await;
    let in_flight = tokio::spawn(watchdog.request("GET", "/sleep/1000").send());
    watchdog.until_metric("http_requests_in_flight 1").await;
    watchdog.signal("TERM");
    assert_eq!(in_flight.await.unwrap().unwrap().status(), StatusCode::OK);
    assert_eq!(watchdog.ended().await.code(), Some(0));
    until_gone(pid).await;
}

#[tokio::test]
async fn a_request_is_not_waited_for_longer_than_write_timeout() {
    let function = Function::start().await;
    let builder =
        in_front_of(&function.url).env("write_timeout", "500ms").env("healthcheck_interval", "100ms");
    let mut watchdog = builder.start().await;
    let mut stream = TcpStream::connect(watchdog.authority()).await.unwrap();
    // A request that is never complete is never answered.
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET /x HT").await.unwrap();
    watchdog.status("/x").await;
    watchdog.signal("TERM");
    assert_eq!(watchdog.ended().await.code(), Some(0));
}

#[tokio::test]
async fn sigint_and_knative_do_not_wait_for_the_interval() {
    let function = Function::start().await;
    for (signal, revision) in [("INT", None), ("TERM", Some("f-00001"))] {
        let builder = in_front_of(&function.url).env("healthcheck_interval", "1h");
        let builder = revision.into_iter().fold(builder, |builder, name| builder.env("K_REVISION", name));
        let mut watchdog = builder.start().await;
        watchdog.signal(signal);
        assert_eq!(watchdog.ended().await.code(), Some(0));
        assert!(!watchdog.lock_file().exists());
    }
}

#[tokio::test]
async fn sigint_ends_the_wait_that_is_under_way() {
    let function = Function::start().await;
    let mut watchdog = in_front_of(&function.url).env("healthcheck_interval", "1h").start().await;
    let in_flight = tokio::spawn(watchdog.request("GET", "/sleep/60000").send());
    function.until_busy(1).await;
    watchdog.signal("TERM");
    watchdog.until_status("/_/health", StatusCode::SERVICE_UNAVAILABLE).await;
    watchdog.signal("INT");
    while TcpStream::connect(watchdog.authority()).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    watchdog.signal("INT");
    assert_eq!(watchdog.ended().await.code(), Some(0));
    assert!(in_flight.await.unwrap().is_err());
}

#[tokio::test]
async fn a_function_that_ends_ends_the_watchdog_and_fails_requests_at_once() {
    for (code, status) in [(3, "exit status 3"), (0, "exit status 0")] {
        let mut watchdog = with_process().start().await;
        let in_flight = tokio::spawn(watchdog.request("GET", "/sleep/60000").send());
        watchdog.until_metric("http_requests_in_flight 1").await;
        let exit = watchdog.get(&format!("/exit/{code}")).await;
        assert_eq!(exit.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(in_flight.await.unwrap().unwrap().status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(watchdog.ended().await.code(), Some(1));
        watchdog.line(&format!("Forked function has terminated: {status}")).await;
        assert!(!watchdog.lock_file().exists());
    }
}

#[tokio::test]
async fn a_request_that_is_held_fails_when_the_function_never_starts() {
    let mut watchdog = with_process().env("fprocess", "sleep 1").no_wait().start().await;
    assert_eq!(watchdog.status("/held").await, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(watchdog.ended().await.code(), Some(1));
}

#[tokio::test]
async fn a_killed_watchdog_takes_the_function_with_it() {
    let mut watchdog = with_process().start().await;
    let pid = function_pid(&watchdog).await;
    assert!(is_alive(pid));
    watchdog.signal("KILL");
    watchdog.ended().await;
    until_gone(pid).await;
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let (status, stderr) =
        in_front_of("http://127.0.0.1:9").env("fprocess", "no-such-program").run(&[]).await;
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("fprocess is \"no-such-program\", and it can't be started"), "{stderr}");
    assert!(stderr.contains("Forked function has terminated: exit status 127"), "{stderr}");
}

#[tokio::test]
async fn what_cannot_work_ends_with_one_line_and_1() {
    let cases = [
        (in_front_of("http://x").without("fprocess"), "Error loading config: provide a \"function_process\""),
        (in_front_of("http://x").without("upstream_url"), "Error loading config: upstream_url is \"\""),
        (
            in_front_of("http://x").env("mode", "inproc"),
            "Error loading config: mode is \"inproc\", allowed is ",
        ),
        (
            in_front_of("http://x").env("restart_policy", "x"),
            "Error loading config: restart_policy is \"x\", allowed is no, on-failure, on-failure:COUNT or always",
        ),
        (in_front_of("http://x").env("mode", "afterburn"), "Error loading config: mode is \"afterburn\""),
        (in_front_of("http://x").env("write_timeout", 0), "Error loading config: write_timeout is \"0\""),
        (
            in_front_of("http://x").env("log_buffer_size", "x"),
            "Error loading config: log_buffer_size is \"x\"",
        ),
    ];
    for (builder, wanted) in cases {
        let (status, stderr) = builder.run(&[]).await;
        assert_eq!(status.code(), Some(1));
        assert!(stderr.starts_with(wanted) && stderr.lines().count() == 1, "{stderr}");
    }
}

#[tokio::test]
async fn a_port_that_is_taken_and_a_folder_that_is_not_there_are_named() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let builder = in_front_of("http://127.0.0.1:9").env("listen_address", "127.0.0.1");
    let (status, stderr) = builder.env("port", port).run(&[]).await;
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains(&format!("port is \"{port}\", and 127.0.0.1 can't be listened on")), "{stderr}");
    let (status, stderr) = in_front_of("http://127.0.0.1:9").env("TMPDIR", "/nowhere").run(&[]).await;
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("TMPDIR is \"/nowhere\", and the lock file can't be written there"), "{stderr}");
}

#[tokio::test]
async fn port_wins_over_the_upper_case_one() {
    let function = Function::start().await;
    // Of two variables of one name, the later one is kept.
    let watchdog = in_front_of(&function.url).env("port", 19_999).env("PORT", 19_998).start().await;
    assert!(watchdog.authority().ends_with(":19999"));
    let watchdog = in_front_of(&function.url).without("port").env("PORT", 19_998).start().await;
    assert!(watchdog.authority().ends_with(":19998"));
}

#[tokio::test]
async fn flags_answer_without_a_service() {
    let (status, stderr) = bare().run(&["-version"]).await;
    assert!(status.success() && stderr.contains("Version: ") && stderr.contains("\tSHA: "), "{stderr}");
    let builder = in_front_of("http://x");
    let lock_file = builder.path(".lock");
    let (status, stderr) = builder.run(&["-run-healthcheck"]).await;
    assert_eq!((status.code(), stderr.as_str()), (Some(1), "unable to find lock file.\n"));
    let builder = in_front_of("http://x");
    std::fs::write(builder.path(".lock"), "").unwrap();
    assert!(builder.run(&["-run-healthcheck"]).await.0.success());
    assert_eq!(bare().run(&["-run-healthcheck"]).await.0.code(), Some(1));
    assert_eq!(bare().run(&["-x"]).await.0.code(), Some(2));
    assert!(!lock_file.exists());
}

#[tokio::test]
async fn the_lock_file_is_not_for_everyone() {
    use std::os::unix::fs::PermissionsExt;
    let function = Function::start().await;
    let watchdog = in_front_of(&function.url).start().await;
    let mode = std::fs::metadata(watchdog.lock_file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o007, 0, "{mode:o}");
}

#[tokio::test]
async fn a_function_that_fails_starts_again_where_the_policy_says_so() {
    let mut watchdog = with_process().env("restart_policy", "on-failure:2").start().await;
    let first = function_pid(&watchdog).await;
    for _ in 0..2 {
        watchdog.get("/exit/3").await;
        watchdog.line("exit status 3, restarting in ").await;
        // Held until it is up again.
        watchdog.until_status("/held", StatusCode::OK).await;
        watchdog.until_status("/_/health", StatusCode::OK).await;
    }
    let starts = watchdog.count_lines(" listens, ", 3).await;
    assert!(starts == 3 && !is_alive(first), "{:#?}", watchdog.lines());
    watchdog.get("/exit/3").await;
    assert_eq!(watchdog.ended().await.code(), Some(1));
}

#[tokio::test]
async fn between_its_end_and_its_next_start_a_function_is_not_healthy() {
    let watchdog =
        with_process().env("restart_policy", "always").env("fprocess", "false").no_wait().start().await;
    watchdog.until_status("/_/health", StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(watchdog.status("/_/ready").await, StatusCode::SERVICE_UNAVAILABLE);
    watchdog.line("exit status 1, restarting in 400ms").await;
}

#[tokio::test]
async fn a_watchdog_that_is_told_to_stop_starts_no_function_again() {
    let mut watchdog =
        with_process().env("restart_policy", "always").env("healthcheck_interval", "50ms").start().await;
    let pid = function_pid(&watchdog).await;
    watchdog.signal("TERM");
    assert_eq!(watchdog.ended().await.code(), Some(0));
    until_gone(pid).await;
    assert_eq!(watchdog.count_lines(" listens, ", 1).await, 1);
}

#[tokio::test]
async fn with_compat_a_function_learns_of_sigterm_at_once() {
    let mut watchdog =
        with_process().env("compat", "of-watchdog").env("healthcheck_interval", "1h").start().await;
    function_pid(&watchdog).await;
    watchdog.signal("TERM");
    assert_eq!(watchdog.ended().await.code(), Some(1));
    watchdog.line("Forked function has terminated: signal: terminated").await;
}
