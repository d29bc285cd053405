use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

fn wanted(service: &str, tag: Option<&str>, datacenter: Option<&str>) -> Option<Wanted> {
    Some(Wanted {
        service: service.to_owned(),
        tag: tag.map(str::to_owned),
        datacenter: datacenter.map(str::to_owned),
    })
}

#[test]
fn hosts_are_read_as_by_consuls_dns() {
    let cases = [
        ("web", wanted("web", None, None)),
        ("WEB", wanted("web", None, None)),
        ("my_web-1", wanted("my_web-1", None, None)),
        ("web.service.consul", wanted("web", None, None)),
        ("Web.Service.Consul.", wanted("web", None, None)),
        ("v1.web.service.consul", wanted("web", Some("v1"), None)),
        ("v1.2.web.service.consul", wanted("web", Some("v1.2"), None)),
        ("web.service.dc2.consul", wanted("web", None, Some("dc2"))),
        (
            "web.service.dc2.dc.consul",
            wanted("web", None, Some("dc2")),
        ),
        (
            "v1.web.service.dc2.consul",
            wanted("web", Some("v1"), Some("dc2")),
        ),
        ("_web._tcp.service.consul", wanted("web", None, None)),
        ("_web._v1.service.consul", wanted("web", Some("v1"), None)),
        // Two labels with one underscore are a tag and a service.
        ("v1._web.service.consul", wanted("_web", Some("v1"), None)),
        ("localhost", None),
        ("127.0.0.1", None),
        ("[::1]", None),
        ("example.com", None),
        ("web.service.example.com", None),
        ("consul", wanted("consul", None, None)),
        ("consul.service.consul", wanted("consul", None, None)),
        ("node1.node.consul", None),
        ("web.query.consul", None),
        ("0a000001.addr.dc1.consul", None),
        ("web.serviceconsul", None),
    ];
    for (host, meant) in cases {
        assert_eq!(read(host, "consul").unwrap(), meant, "{host}");
    }
}

#[test]
fn a_name_of_consuls_that_can_be_none_is_an_error_that_says_so() {
    for host in [
        "service.consul",
        "service.dc1.consul",
        ".web.service.consul",
    ] {
        let error = read(host, "consul").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{host}");
        let text = error.to_string();
        assert!(text.contains("write web.service.consul"), "{text}");
    }
}

#[test]
fn another_domain_is_another_domain() {
    let domain = "consul.example.com";
    let meant = read("v1.web.service.dc2.consul.example.com", domain).unwrap();
    assert_eq!(meant, wanted("web", Some("v1"), Some("dc2")));
    assert_eq!(read("web.service.consul", domain).unwrap(), None);
}

fn client() -> Client {
    Client::builder().build().unwrap()
}

/// A directory of numbers: each that is made is another one.
fn numbered(services: Services) -> Directory<Arc<usize>> {
    let made = AtomicUsize::new(0);
    let make = move |_: &Client, _: &Wanted| Ok(Arc::new(made.fetch_add(1, Ordering::SeqCst)));
    Directory::new(services, make).unwrap()
}

fn number(directory: &Directory<Arc<usize>>, host: &str) -> usize {
    *directory.find(host).unwrap().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_service_is_set_up_once_whatever_its_spelling() {
    let directory = numbered(Services::new(client()));
    assert_eq!(number(&directory, "web"), 0);
    assert_eq!(number(&directory, "db"), 1);
    assert_eq!(number(&directory, "web.service.consul"), 0);
    assert_eq!(number(&directory, "WEB"), 0);
    assert_eq!(number(&directory, "v1.web.service.consul"), 2);
    assert!(directory.find("example.com").unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_service_that_nobody_asks_for_is_forgotten_in_time() {
    let services = Services::new(client()).forget_after(Duration::from_secs(60));
    let directory = numbered(services);
    let kept = directory.find("web").unwrap().unwrap();
    number(&directory, "db");
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(15)).await;
        assert_eq!(number(&directory, "db"), 1);
    }
    // A quarter of the time at most passes until it is noticed.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(directory.len(), 1);
    assert_eq!(Arc::strong_count(&kept), 1);
    assert_eq!(number(&directory, "web"), 2);
}

#[tokio::test(start_paused = true)]
async fn beyond_the_bound_the_one_asked_for_longest_ago_is_dropped() {
    let directory = numbered(Services::new(client()).max_services(2));
    let moment = Duration::from_millis(1);
    number(&directory, "a");
    tokio::time::sleep(moment).await;
    number(&directory, "b");
    tokio::time::sleep(moment).await;
    number(&directory, "a");
    tokio::time::sleep(moment).await;
    number(&directory, "c");
    assert_eq!(directory.len(), 2);
    assert_eq!(number(&directory, "a"), 0);
    assert_eq!(number(&directory, "b"), 3);
}

#[tokio::test]
async fn the_task_that_forgets_ends_with_the_directory() {
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let directory = numbered(Services::new(client()));
    assert_eq!(tasks(), 1);
    drop(directory);
    let ended = async {
        while tasks() > 0 {
            tokio::task::yield_now().await;
        }
    };
    let limit = Duration::from_millis(100);
    tokio::time::timeout(limit, ended).await.unwrap();
}

#[tokio::test]
async fn what_cannot_work_is_refused() {
    let refused = |services: Services, why: &str| {
        let made = Directory::new(services, |_, _| Ok(()));
        let error = made.map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(why), "{error}");
    };
    refused(Services::new(client()).max_services(0), "max_services");
    let never = Services::new(client()).forget_after(Duration::ZERO);
    refused(never, "forget_after");
    refused(Services::new(client()).domain("a..b"), "\"a..b\"");
}

#[test]
fn without_a_runtime_it_says_so() {
    let made = Directory::new(Services::new(client()), |_, _| Ok(()));
    let error = made.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRuntime);
}
