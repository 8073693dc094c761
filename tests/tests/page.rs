//! The web page `/ui`: what servers say of it and with it, and how it is in Chromium. `make test-page` needs Node.
// A test ends where something is wrong with it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::{CONTENT_SECURITY_POLICY, ETAG, IF_NONE_MATCH, LOCATION};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tests::apiserver::ApiServer;
use tests::browser::{self, Browser, Tab, View};
use tests::function::Function;
use tests::keda::Keda;
use tests::local::Local;
use tests::scaler::Scaler;
use tests::showcase::Showcase;
use tests::wait::until;
use tests::watchdogs::Watchdogs;

const PATIENCE: Duration = Duration::from_secs(20);
const WIDE: (u32, u32) = (1440, 1600);
const LIGHT: View = View { size: WIDE, is_dark: false, hurry: 1 };
const DARK: View = View { is_dark: true, ..LIGHT };

fn client() -> Client {
    let client = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).timeout(PATIENCE);
    client.build().unwrap()
}

/// A file of the page, after a look at what comes with it.
async fn file(client: &Client, base: &str, name: &str) -> String {
    let url = format!("{base}/ui/{name}");
    let answer = client.get(&url).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK, "{url}");
    let headers = answer.headers().clone();
    let policy = headers[CONTENT_SECURITY_POLICY].to_str().unwrap();
    assert!(policy.starts_with("default-src 'self';") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert_eq!(headers["cache-control"], "no-cache");
    let again = client.get(&url).header(IF_NONE_MATCH, &headers[ETAG]).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{url}");
    answer.text().await.unwrap()
}

/// What stands in `text` between `before` and a quotation mark.
fn quoted<'a>(text: &'a str, before: &str) -> BTreeSet<&'a str> {
    text.split(before).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

/// The page of a server, all that it loads, and that none of it is from elsewhere.
async fn check(base: &str) {
    let client = client();
    for path in ["/", "/ui"] {
        let answer = client.get(format!("{base}{path}")).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT);
        assert_eq!(answer.headers()[LOCATION], "ui/");
    }
    let page = file(&client, base, "").await;
    let mut scripts = quoted(&page, "src=\"")
        .iter()
        .filter(|name| **name != "icon.svg")
        .map(ToString::to_string)
        .collect::<Vec<_>>();
    let mut sources = Vec::new();
    let mut next = 0;
    while let Some(name) = scripts.get(next).cloned() {
        next += 1;
        let source = file(&client, base, &name).await;
        scripts.extend(
            quoted(&source, "from \"./")
                .into_iter()
                .map(str::to_string)
                .filter(|name| !scripts.contains(name))
                .collect::<Vec<_>>(),
        );
        sources.push(source);
    }
    assert!(scripts.len() >= 8, "{scripts:?}");
    let ids = quoted(&page, "id=\"");
    let used: BTreeSet<_> = sources.iter().flat_map(|source| quoted(source, "byId(\"")).collect();
    assert!(used.len() > 20 && used.is_subset(&ids), "{:?}", used.difference(&ids));
    let links: BTreeSet<_> = quoted(&page, "href=\"").into_iter().chain(quoted(&page, "src=\"")).collect();
    for link in links.iter().filter(|link| !link.starts_with('#') && !link.starts_with("../v1")) {
        sources.push(file(&client, base, link).await);
    }
    sources.push(page);
    for source in sources {
        let plain = source.replace("http://www.w3.org/2000/svg", "");
        for outside in [
            "http:",
            "https:",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "style=",
            "onclick=",
        ] {
            assert!(!plain.contains(outside), "{outside} in {source}");
        }
        assert!(!plain.contains("url(") && !plain.contains("@import"), "{source}");
    }
    let missing = client.get(format!("{base}/ui/secrets.js")).send().await.unwrap();
    assert_eq!(missing.status(), StatusCode::NOT_FOUND);
}

/// The cluster of a scaler: one function on two GPUs, and one whose annotations are wrong.
struct Stage {
    cluster: ApiServer,
    watchdogs: Watchdogs,
}

impl Stage {
    async fn start() -> Self {
        let (cluster, watchdogs) = (ApiServer::start().await, Watchdogs::start(2).await);
        let shared =
            [("sm", "50"), ("quota", "20"), ("quota-limit", "80"), ("memory", "8Gi"), ("slo", "p95<250ms")];
        cluster.put_deployment("resnet", 2, &shared);
        cluster.put_placed_replica("resnet", "resnet-6b8c9-0", watchdogs.address(0), "GPU-1", "40");
        cluster.put_placed_replica("resnet", "resnet-6b8c9-1", watchdogs.address(1), "GPU-2", "0");
        cluster.put_deployment("odd", 0, &[("sm", "900")]);
        Self { cluster, watchdogs }
    }

    async fn scaler(&self) -> Scaler {
        let scaler =
            Scaler::builder(&self.cluster).with("--watchdog-port", &self.watchdogs.port).start().await;
        scaler.until_read("resnet").await;
        scaler
    }
}

#[tokio::test]
async fn the_scaler_serves_the_page_and_what_it_shows() {
    let stage = Stage::start().await;
    let scaler = stage.scaler().await;
    check(&format!("http://{}", scaler.http)).await;
    let overview: Value = serde_json::from_str(&scaler.get("/v1/overview").await.1).unwrap();
    let [odd, resnet] = overview["functions"].as_array().unwrap().as_slice() else { panic!("{overview}") };
    assert!(odd["problem"].as_str().unwrap().contains("gpufn.dev/sm is \"900\""), "{odd}");
    assert_eq!(
        (&resnet["problem"], &resnet["policy"], &resnet["slo_bound_ms"]),
        (&Value::Null, &json!("hybrid"), &json!(250.0))
    );
    let states: Vec<_> =
        resnet["replicas"].as_array().unwrap().iter().map(|replica| replica["state"].clone()).collect();
    assert_eq!(states, ["ready", "parked"]);
    assert_eq!(resnet["replicas"][0]["grant_percent"], 40.0);
    let gpus = overview["gpus"].as_array().unwrap();
    let gpu = |index: usize| {
        (gpus[index]["node"].clone(), gpus[index]["uuid"].clone(), gpus[index]["reserved_ratio"].clone())
    };
    assert_eq!(gpu(0), (json!("node-1"), json!("GPU-1"), json!(0.2)), "half of the SMs for 40 % of the time");
    assert_eq!(gpu(1), (json!("node-1"), json!("GPU-2"), json!(0.1)), "8 of 80 GiB");
}

#[tokio::test]
async fn the_scaler_tells_when_it_tells_keda_another_number_of_replicas_and_why() {
    let stage = Stage::start().await;
    let scaler = stage.scaler().await;
    let keda = Keda::at(&[scaler.grpc], "resnet").trigger("so");
    keda.poll().await.unwrap();
    stage.watchdogs.show_all(|shown| (shown.in_flight, shown.waiting) = (40, 30));
    let decisions = until("another need", PATIENCE, async || {
        keda.poll().await.unwrap();
        let told: Vec<Value> =
            serde_json::from_str(&scaler.get("/v1/decisions?after=0&last=100").await.1).unwrap();
        (told.len() > 1).then_some(told)
    })
    .await;
    let [first, second, ..] = decisions.as_slice() else { panic!("{decisions:?}") };
    assert_eq!(
        (&first["seq"], &first["from"], &second["seq"], &second["from"]),
        (&json!(1), &Value::Null, &json!(2), &first["to"])
    );
    assert!(second["to"].as_f64() > first["to"].as_f64(), "{decisions:?}");
    assert!(!second["reason"].as_str().unwrap().is_empty());
    let after: Vec<Value> =
        serde_json::from_str(&scaler.get("/v1/decisions?after=1&last=1").await.1).unwrap();
    assert_eq!(after.len(), 1);
    assert_eq!(scaler.get("/v1/decisions?last=many").await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn gpufn_up_serves_the_page_and_asks_for_its_password() {
    let up = Local::up().start().await;
    check(up.gateway().url()).await;
    up.stop().await;
    let up = Local::up().auth(true).start().await;
    for path in ["/", "/ui/", "/ui/main.js", "/v1/overview"] {
        let answer = client().get(format!("{}{path}", up.gateway().url())).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path}");
    }
    up.stop().await;
}

/// Where pictures are put.
fn picture(name: &str) -> PathBuf {
    browser::folder().join(name)
}

/// Nothing went wrong in the page, and axe finds nothing either.
async fn must_be_well(tab: &Tab) {
    assert_eq!(tab.problems(), Vec::<String>::new());
    tab.value(&format!("{}; 0", browser::axe())).await;
    let found = "axe.run().then((all) => all.violations.map((v) => `${v.id}: ${v.help} ${v.nodes.map((n) => n.html + n.failureSummary)}`))";
    assert_eq!(tab.value(found).await, json!([]));
}

/// The text of all elements that fit a selector.
async fn texts(tab: &Tab, selector: &str) -> Vec<String> {
    let all = tab
        .value(&format!(
            "[...document.querySelectorAll({})].map((node) => node.textContent)",
            json!(selector)
        ))
        .await;
    serde_json::from_value(all).unwrap()
}

/// Waits until the page has seen so many seconds of its own, by the place where the first line of the table begins.
async fn seen_for(tab: &Tab, seconds: u32) {
    let from = 100.0 - f64::from(seconds) / 3.0;
    tab.until(&format!(
        "parseFloat(document.querySelector('.spark path').getAttribute('d').slice(1)) < {from}"
    ))
    .await;
}

async fn focused(tab: &Tab) -> String {
    tab.value("document.activeElement.textContent || document.activeElement.id")
        .await
        .as_str()
        .unwrap()
        .into()
}

#[tokio::test]
#[ignore = "needs Chromium: make test-page"]
async fn three_functions_are_shown_light_and_dark_and_change_while_one_looks() {
    let (stage, browser) = (Showcase::start(3, None).await, Browser::start());
    for (view, name) in [(LIGHT, "3-light.png"), (DARK, "3-dark.png")] {
        let tab = browser.open(stage.url(), View { hurry: 25, ..view }).await;
        tab.until("document.querySelectorAll('#rows tr').length === 3").await;
        assert_eq!(texts(&tab, "#link").await, ["● Live"]);
        assert_eq!(texts(&tab, "#rows .name button").await, ["bert-base", "resnet50", "vgg16"]);
        assert_eq!(tab.value("document.querySelectorAll('.map .slice').length").await, 4);
        let rate = texts(&tab, "#rows .rate b").await;
        until("the load to change", PATIENCE, async || {
            (texts(&tab, "#rows .rate b").await != rate).then_some(())
        })
        .await;
        tab.until("document.querySelectorAll('#decision-list li').length > 20").await;
        seen_for(&tab, 240).await;
        tab.picture(&picture(name)).await;
        must_be_well(&tab).await;
        let label = tab.value("document.querySelector('.map').getAttribute('aria-label')").await;
        assert!(label.as_str().unwrap().starts_with("Row 0: resnet50 40 % of the SMs for "), "{label}");
    }
}

#[tokio::test]
#[ignore = "needs Chromium: make test-page"]
async fn two_hundred_functions_are_found_sorted_and_gone_through_by_keys() {
    let (stage, browser) = (Showcase::start(200, None).await, Browser::start());
    for (view, name) in [(LIGHT, "200-light.png"), (DARK, "200-dark.png")] {
        let tab = browser.open(stage.url(), View { hurry: 10, ..view }).await;
        tab.until("document.querySelectorAll('#rows tr').length === 200").await;
        seen_for(&tab, 120).await;
        tab.value("document.querySelector('[data-by=latency] button').click()").await;
        assert_eq!(
            tab.value("document.querySelector('[data-by=latency]').getAttribute('aria-sort')").await,
            "descending"
        );
        tab.picture(&picture(name)).await;
        must_be_well(&tab).await;
    }
    let tab = browser.open(stage.url(), LIGHT).await;
    tab.until("document.querySelectorAll('#rows tr').length === 200").await;
    assert_eq!(
        tab.value("document.querySelectorAll('#rows [tabindex=\"0\"]').length").await,
        1,
        "one row is in the tab order"
    );
    tab.press("/").await;
    tab.insert("bert maps").await;
    tab.until("document.querySelectorAll('#rows tr').length === 5").await;
    assert_eq!(texts(&tab, "#shown").await, ["5 of 200"]);
    let names = texts(&tab, "#rows .name button").await;
    assert!(names.iter().all(|name| name.starts_with("maps-bert-base")), "{names:?}");
    for _ in 0..40 {
        if focused(&tab).await == names[0] {
            break;
        }
        tab.press("Tab").await;
    }
    assert_eq!(focused(&tab).await, names[0], "the Tab key leads from the search to the first row");
    tab.press("ArrowDown").await;
    assert_eq!(focused(&tab).await, names[1]);
    tab.press("End").await;
    assert_eq!(focused(&tab).await, names[4]);
    tab.press("Enter").await;
    assert_eq!(texts(&tab, "#detail-title").await, [names[4].clone()]);
    assert_eq!(tab.value("decodeURIComponent(location.hash)").await, format!("#openfaas-fn/{}", names[4]));
    tab.until("document.querySelectorAll('#replicas tbody tr').length > 0").await;
    tab.picture(&picture("200-selected.png")).await;
    must_be_well(&tab).await;
    tab.press("Escape").await;
    assert_eq!(texts(&tab, "#detail-title").await, ["All functions"]);
    tab.press("?").await;
    assert_eq!(tab.value("document.getElementById('keys').open").await, true);
    must_be_well(&tab).await;
    tab.press("Escape").await;
    assert_eq!(tab.value("document.getElementById('keys').open").await, false);
    tab.press("p").await;
    assert_eq!(texts(&tab, "#link").await, ["‖ Paused"]);
}

#[tokio::test]
#[ignore = "needs Chromium: make test-page"]
async fn a_name_that_looks_like_html_is_text() {
    let name = "<img src=x onerror=\"window.harmed = true\"><script>window.harmed = true</script>\u{202e}";
    let (stage, browser) = (Showcase::start(3, Some(name)).await, Browser::start());
    let tab = browser.open(stage.url(), LIGHT).await;
    tab.until("document.querySelectorAll('#rows tr').length === 3").await;
    tab.value("[...document.querySelectorAll('#rows button')].find((one) => one.textContent.startsWith('<img')).click()").await;
    tab.until("document.querySelectorAll('#decision-list li').length > 0").await;
    assert_eq!(texts(&tab, "#detail-title").await, [name]);
    assert_eq!(
        tab.value("window.harmed === undefined && document.querySelectorAll('main img, main script').length")
            .await,
        0
    );
    must_be_well(&tab).await;
}

#[tokio::test]
#[ignore = "needs Chromium: make test-page"]
async fn a_server_that_is_gone_is_said_to_be_and_found_again() {
    let (stage, browser) = (Showcase::start(3, None).await, Browser::start());
    let tab = browser.open(stage.url(), LIGHT).await;
    tab.until("document.querySelectorAll('#rows tr').length === 3").await;
    stage.fail(true);
    tab.until("!document.getElementById('lost').hidden").await;
    assert_eq!(texts(&tab, "#link").await, ["▲ No connection"]);
    assert_eq!(texts(&tab, "#lost-why").await, ["The server answers 503."]);
    assert_eq!(texts(&tab, "#rows .name button").await.len(), 3, "what was known stays");
    let problems = tab.problems();
    assert!(problems.iter().all(|problem| problem.contains("503")), "{problems:?}");
    tab.picture(&picture("lost.png")).await;
    stage.fail(false);
    tab.value("document.getElementById('retry').click()").await;
    tab.until(
        "document.getElementById('lost').hidden && document.getElementById('link').textContent === '● Live'",
    )
    .await;
}

#[tokio::test]
#[ignore = "needs Chromium: make test-page"]
async fn nothing_is_shown_as_nothing_with_what_to_do() {
    let (stage, browser) = (Showcase::start(0, None).await, Browser::start());
    let tab = browser.open(stage.url(), LIGHT).await;
    tab.until("!document.getElementById('functions-none').hidden").await;
    assert!(texts(&tab, "#functions-none").await[0].contains("faas-cli deploy --gateway http://127.0.0.1:"));
    tab.picture(&picture("empty.png")).await;
    must_be_well(&tab).await;
    let narrow = browser.open(stage.url(), View { size: (360, 900), ..DARK }).await;
    narrow.until("!document.getElementById('functions-none').hidden").await;
    assert_eq!(
        narrow.value("document.documentElement.scrollWidth").await,
        360,
        "nothing is wider than a phone"
    );
    must_be_well(&narrow).await;
}

#[tokio::test]
#[ignore = "needs Chromium: make test-page"]
async fn a_function_of_gpufn_up_is_seen_while_it_works() {
    let (up, browser) = (Local::up().start().await, Browser::start());
    let tab = browser.open(&format!("{}/ui/", up.gateway().url()), LIGHT).await;
    tab.until("!document.getElementById('functions-none').hidden").await;
    let function =
        Function::inference("resnet", "resnet50").sm(30).quota(20, 80).memory("1Gi").slo("p95<500ms");
    up.gateway().deploy_ready(&function).await;
    tab.until("document.querySelectorAll('#rows tr').length === 1").await;
    for _ in 0..20 {
        up.gateway().infer("resnet").await;
    }
    tab.until("document.querySelector('.latency b').textContent.endsWith(' ms')").await;
    tab.until("document.querySelector('.map .slice b').textContent === 'resnet'").await;
    tab.until("document.querySelectorAll('#decision-list li').length > 0").await;
    tab.picture(&picture("up.png")).await;
    must_be_well(&tab).await;
    // Unused, it is parked.
    tab.until("document.querySelector('.parked').textContent.endsWith('resnet')").await;
    up.stop().await;
}

#[tokio::test]
#[ignore = "needs Chromium: make test-page"]
async fn what_a_scaler_knows_is_shown_without_rows() {
    let stage = Stage::start().await;
    let (scaler, browser) = (stage.scaler().await, Browser::start());
    stage.watchdogs.show_all(|shown| (shown.rate, shown.in_flight) = (12.0, 2));
    Keda::at(&[scaler.grpc], "resnet").trigger("so").poll().await.unwrap();
    let tab = browser.open(&format!("http://{}/ui/#fn%2Fresnet", scaler.http), DARK).await;
    tab.until("document.querySelectorAll('#rows tr').length === 2").await;
    tab.until("document.querySelectorAll('.gpu').length === 2").await;
    assert_eq!(texts(&tab, ".gpu h3").await, ["node-1 · GPU-1", "node-1 · GPU-2"]);
    assert_eq!(texts(&tab, "#detail-title").await, ["resnet"], "the address says which function is selected");
    tab.until("document.querySelectorAll('#decision-list li').length > 0").await;
    tab.picture(&picture("scaler.png")).await;
    must_be_well(&tab).await;
}
