//! What the harness promises to the machine it runs on.

mod consul {
    use std::io::{BufRead, BufReader};
    use std::net::{SocketAddr, TcpStream};
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use support::eventually;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn an_agent_does_not_outlive_a_test_process_that_is_killed() {
        let mut process = Command::new(env!("CARGO_BIN_EXE_with-consul"))
            .args(["sh", "-c", "echo $CONSUL_HTTP_ADDR; exec cat"])
            // The command ends with this pipe, however the test ends.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        let stdout = process.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut url).unwrap();
        let addr: SocketAddr = url.trim().strip_prefix("http://").unwrap().parse().unwrap();
        assert!(TcpStream::connect(addr).is_ok());
        let folder = format!("lictor-consul-{}-0", process.id());
        let folder = std::env::temp_dir().join(folder);
        assert!(folder.exists());

        process.kill().unwrap();
        process.wait().unwrap();
        eventually(PATIENCE, async || TcpStream::connect(addr).is_err()).await;
        eventually(PATIENCE, async || !folder.exists()).await;
    }

    #[tokio::test]
    async fn a_command_runs_beside_an_agent_and_its_status_is_passed_on() {
        let mut run = Command::new(env!("CARGO_BIN_EXE_with-consul"));
        run.args(["sh", "-c", "test \"$1\" = \"$CONSUL_HTTP_ADDR\" && exit 7"])
            .args(["sh", "{}"]);
        assert_eq!(run.status().unwrap().code(), Some(7));
    }
}
