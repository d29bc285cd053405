//! Runs a command while a Consul of its own stands beside it.
//!
//! `with-consul COMMAND [ARGUMENT…]` starts a development server on free ports, runs the command
//! with `CONSUL_HTTP_ADDR` set and `{}` in its arguments replaced by the same URL, stops the
//! server, and exits with the command's status.

use std::process::{Command, ExitCode};

use support::consul::Agent;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(program) = arguments.next() else {
        eprintln!("with-consul COMMAND [ARGUMENT…]: no command given");
        return ExitCode::from(2);
    };
    let agent = Agent::start().await;
    let url = agent.http_url();
    let status = Command::new(&program)
        .args(arguments.map(|argument| argument.replace("{}", &url)))
        .env("CONSUL_HTTP_ADDR", &url)
        .status();
    drop(agent);
    match status {
        Ok(status) => match status.code().map(u8::try_from) {
            Some(Ok(code)) => ExitCode::from(code),
            _ => ExitCode::FAILURE,
        },
        Err(error) => {
            eprintln!("with-consul: cannot run {program}: {error}");
            ExitCode::FAILURE
        }
    }
}
