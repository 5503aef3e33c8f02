use super::*;

fn config(more: &str) -> Config {
    let text = format!(
        r#"
        host = "alpha"
        listen = "0.0.0.0:7450"
        peers = ["spiffe://example.test/snapshot-api"]
        {more}
        [tls]
        ca = "/etc/rs/pki/ca.pem"
        certificate = "/etc/rs/pki/agent.pem"
        key = "/etc/rs/private/agent.key"
        [[issuers]]
        issuer = "ravada"
        jwks = "/etc/rs/ravada.jwks.json"
        actions = ["create"]
        "#
    );
    Config::parse(&text).unwrap()
}

fn may(list: &List, path: &str) -> Vec<May> {
    list.places.iter().filter(|place| place.path == Path::new(path)).map(|place| place.may).collect()
}

#[test]
fn the_list_follows_from_the_configuration() {
    let list = List::of(&config(
        "image_dirs = [\"/srv/a\", \"/srv/b\"]\nread_dirs = [\"/srv/bases\"]\nstate_dir = \"/srv/state\"",
    ));
    assert_eq!(may(&list, "/srv/a"), [May::Images]);
    assert_eq!(may(&list, "/srv/b"), [May::Images]);
    assert_eq!(may(&list, "/srv/bases"), [May::Read]);
    assert_eq!(may(&list, "/srv/state"), [May::Keep]);
    assert_eq!(may(&list, "/var/lib/libvirt/qemu/snapshot"), [May::List]);
    // Their folders, because they are replaced by renaming.
    assert_eq!(may(&list, "/etc/rs/pki"), [May::Read]);
    assert_eq!(may(&list, "/etc/rs/private"), [May::Read]);
    assert_eq!(may(&list, "/etc/rs"), [May::Read]);
    assert_eq!((list.ports, list.connects), (BTreeSet::from([7450]), BTreeSet::new()));
    assert_eq!(list.capabilities, BTreeSet::from([Capability::DacOverride, Capability::Lease]));
}

#[test]
fn nothing_that_matters_is_on_it() {
    let list = List::of(&config(""));
    for path in
        ["/", "/etc", "/usr", "/usr/bin", "/bin", "/root", "/var", "/var/lib", "/dev", "/proc", "/sys", "/tmp", "/run"]
    {
        assert_eq!(may(&list, path), [], "{path}");
    }
    let writable: Vec<_> =
        list.places.iter().filter(|place| place.may >= May::Device).map(|place| &*place.path).collect();
    let expected = ["/dev/null", "/var/lib/libvirt/images", "/var/lib/ravada-snapshots/agent"];
    assert_eq!(writable, expected.map(Path::new));
}

#[test]
fn the_collectors_port_alone_may_be_connected_to() {
    let list = List::of(&config("telemetry.endpoint = \"http://127.0.0.1:4317\""));
    assert_eq!((list.ports, list.connects), (BTreeSet::from([7450]), BTreeSet::from([4317])));
}

#[test]
fn a_port_that_only_root_may_use_needs_a_capability() {
    let list = List::of(&config("metrics = \"127.0.0.1:91\""));
    assert_eq!(list.ports, BTreeSet::from([91, 7450]));
    assert!(list.capabilities.contains(&Capability::NetBindService));
}

#[test]
fn libvirt_within_the_process_cannot_be_narrowed() {
    for uri in ["qemu:///system", "qemu+unix:///system?socket=/run/x", "test:///default"] {
        assert_eq!(cannot_be_narrowed(uri), None, "{uri}");
    }
    for uri in
        ["qemu:///embed?root=/srv/x", "qemu:///session", "qemu+ssh://elsewhere/system", "qemu+tls://elsewhere/system"]
    {
        assert!(cannot_be_narrowed(uri).is_some(), "{uri}");
    }
}
