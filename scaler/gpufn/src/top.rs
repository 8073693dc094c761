//! `gpufn top`: what each function has, uses and needs, as it changes.
//!
//! Owns the terminal while it runs and gives it back as it was. It only reads; what is drawn is made in `render`.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use crate::load::{Interrupt, runtime};
use crate::view::Overview;

mod render;

/// How often the table is drawn anew.
const EVERY: Duration = Duration::from_secs(1);

/// Arguments of `gpufn top`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Where `gpufn up` listens.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080", env = "OPENFAAS_URL")]
    gateway: String,
    /// File with the password of admin, if `gpufn up` runs with --auth.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Print the table once.
    #[arg(long)]
    once: bool,
    /// Print what the table is made of, once.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
#[allow(clippy::needless_pass_by_value)] // A command owns its arguments; all of them are run alike.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let password = args
        .password_file
        .as_ref()
        .map(|path| std::fs::read_to_string(path).with_context(|| format!("can't read {}", path.display())));
    let source = Source::new(&args.gateway, password.transpose()?)?;
    runtime()?.block_on(async {
        if args.json {
            print(&(serde_json::to_string_pretty(&source.overview().await?)? + "\n"))?;
        } else if args.once || !std::io::stdout().is_terminal() {
            once(&source).await?;
        } else {
            live(&source).await?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Where overviews come from.
#[derive(Clone)]
pub struct Source {
    client: reqwest::Client,
    base: String,
    password: Option<String>,
}

impl std::fmt::Debug for Source {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Source {
    /// The `gpufn up` at `gateway`; `password` is that of its user `admin`, if it asks for one.
    pub fn new(gateway: &str, password: Option<String>) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).no_proxy().build()?;
        let password = password.map(|password| password.trim().to_string());
        Ok(Self { client, base: gateway.trim_end_matches('/').into(), password })
    }

    /// Everything now.
    pub async fn overview(&self) -> anyhow::Result<Overview> {
        self.get("/v1/overview").await
    }

    /// What `path` answers, read as JSON.
    pub async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let url = format!("{}{path}", self.base);
        let mut call = self.client.get(&url);
        if let Some(password) = &self.password {
            call = call.basic_auth("admin", Some(password));
        }
        let answer = call.send().await;
        let answer =
            answer.with_context(|| format!("nothing answers at {}; is `gpufn up` running?", self.base))?;
        let status = answer.status();
        anyhow::ensure!(
            status.as_u16() != 401,
            "{} asks for a password; name its file with --password-file",
            self.base
        );
        anyhow::ensure!(status.is_success(), "{url} answers {status}; gpufn top needs `gpufn up` there");
        answer.json().await.with_context(|| format!("{url} does not answer as gpufn does"))
    }
}

/// Two looks a second apart, since use and rates are differences.
async fn once(source: &Source) -> anyhow::Result<()> {
    let before = source.overview().await?;
    tokio::time::sleep(EVERY).await;
    let now = source.overview().await?;
    print(&render::table(&source.base, &now, Some(&before)))
}

async fn live(source: &Source) -> anyhow::Result<()> {
    let interrupt = Interrupt::on_signal()?;
    let _screen = Screen::enter()?;
    let mut every = tokio::time::interval(EVERY);
    let mut before: Option<Overview> = None;
    loop {
        tokio::select! {
            () = interrupt.stop.cancelled() => return Ok(()),
            _ = every.tick() => {}
        }
        let text = match source.overview().await {
            Ok(now) => {
                let text = render::table(&source.base, &now, before.as_ref());
                before = Some(now);
                text
            }
            // It may come back; the screen says what is the matter meanwhile.
            Err(error) => format!("gpufn top: {error:#}\n"),
        };
        print(&render::frame(&text))?;
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// The terminal's second screen without a cursor; dropping it brings the first one back.
struct Screen;

impl Screen {
    fn enter() -> anyhow::Result<Self> {
        print("\x1b[?1049h\x1b[?25l")?;
        Ok(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nothing more can be done if the terminal is gone.
        let _ = print("\x1b[?25h\x1b[?1049l");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::FunctionSummary;

    async fn serve(app: axum::Router) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        url
    }

    #[tokio::test]
    async fn an_overview_is_read_as_it_is_written() {
        let overview = Overview {
            policy: "gpufn".into(),
            functions: vec![FunctionSummary { name: "f".into(), p95_ms: Some(12.5), ..Default::default() }],
            ..Default::default()
        };
        let told = overview.clone();
        let app = axum::Router::new()
            .route("/v1/overview", axum::routing::get(move || async move { axum::Json(told) }));
        let source = Source::new(&(serve(app).await + "/"), None).unwrap();
        assert_eq!(source.overview().await.unwrap(), overview);
    }

    #[tokio::test]
    async fn a_password_is_sent_and_never_shown() {
        let app = axum::Router::new().route(
            "/v1/overview",
            axum::routing::get(|headers: http::HeaderMap| async move {
                // admin:secret, encoded.
                let known =
                    headers.get("authorization").is_some_and(|value| value == "Basic YWRtaW46c2VjcmV0");
                if known { Ok(axum::Json(Overview::default())) } else { Err(http::StatusCode::UNAUTHORIZED) }
            }),
        );
        let url = serve(app).await;
        let source = Source::new(&url, Some("secret\n".into())).unwrap();
        assert!(source.overview().await.is_ok());
        assert!(!format!("{source:?}").contains("secret"));
        let error = Source::new(&url, None).unwrap().overview().await.unwrap_err().to_string();
        assert!(error.ends_with("asks for a password; name its file with --password-file"), "{error}");
    }

    #[tokio::test]
    async fn what_is_not_gpufn_is_named() {
        let url = serve(axum::Router::new()).await;
        let error = Source::new(&url, None).unwrap().overview().await.unwrap_err().to_string();
        assert!(error.contains("404") && error.contains("gpufn up"), "{error}");
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = Source::new(&format!("http://{nobody}"), None).unwrap().overview().await.unwrap_err();
        assert!(error.to_string().contains("is `gpufn up` running?"), "{error}");
    }
}
