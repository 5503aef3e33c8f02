//! The faces.

use prost::Message as _;
use proto::{agent, v1};
use tests::client::Grpc;
use tonic::Code;

use crate::calls::{self, About, Call};
use crate::faults::{Certificate, Token, Told};
use crate::world::{World, ask, carry_out};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_public_listener() {
    let world = World::start().await;
    let calls = calls::public(&world);
    let face = Grpc::tls(world.lab.cluster.ports().public, &world.lab.cluster.identity().ca()).unwrap();
    every_token(&world, &face, &calls).await;
    the_good_one_does_what_it_says(&world, &face, &calls).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_the_gateway() {
    let world = World::start().await;
    let calls = calls::public(&world);
    let face = Grpc::plain(world.lab.cluster.ports().gateway).unwrap();
    every_token(&world, &face, &calls).await;
    the_good_one_does_what_it_says(&world, &face, &calls).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_listener_for_the_gateway() {
    let world = World::start().await;
    let calls = calls::public(&world);
    let identity = world.lab.cluster.identity();
    let port = world.lab.cluster.ports().internal;
    every_certificate(&world, port, "gateway", &calls).await;
    let face = Grpc::mutual(port, &identity.ca(), &identity.gateway()).unwrap();
    every_token(&world, &face, &calls).await;
    the_good_one_does_what_it_says(&world, &face, &calls).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_agent() {
    let world = World::start().await;
    let calls = calls::of_agent(&world);
    let identity = world.lab.cluster.identity();
    let port = world.lab.cluster.host(tests::lab::HOST).unwrap().port();
    every_certificate(&world, port, "snapshot-api", &calls).await;
    let face = Grpc::mutual(port, &identity.ca(), &identity.api()).unwrap();
    every_token(&world, &face, &calls).await;
    the_good_one_does_what_it_says(&world, &face, &calls).await;
}

/// No call gets through, whatever it is and however good its token.
async fn every_certificate(world: &World, port: u16, right: &str, calls: &[Call]) {
    let identity = world.lab.cluster.identity();
    let token = identity.admin_token().unwrap();
    let (of_another_authority, with_another_name) = world.wrong_leaves(right);
    for certificate in Certificate::ALL {
        let ca = identity.ca();
        for call in calls {
            // A connection each: one that was refused is not used again.
            let face = match certificate {
                Certificate::None => Grpc::tls(port, &ca),
                Certificate::OfAnotherAuthority => Grpc::mutual(port, &ca, &of_another_authority),
                Certificate::WithAnotherName => Grpc::mutual(port, &ca, &with_another_name),
            };
            let context = format!("{certificate:?}, {}", call.method);
            let refusal = ask(&face.unwrap(), call, call.sent(&token)).await.expect_err(&context);
            // The connection was closed: nothing was answered, and the code is the client's own.
            assert_eq!(refusal.reason, "", "{context}: {refusal}");
            let of_the_way =
                matches!(refusal.code, Code::Unknown | Code::Unavailable | Code::Internal | Code::Cancelled);
            assert!(of_the_way, "{context}: {refusal}");
        }
        world.unchanged(&format!("{certificate:?}")).await;
    }
}

async fn every_token(world: &World, face: &Grpc, calls: &[Call]) {
    let uuid = world.guest.uuid().to_string();
    for fault in Token::ALL {
        for call in calls {
            let Some(told) = fault.told(call) else { continue };
            let token = fault.make(world, call).await;
            let context = format!("{fault:?}, {} ({:?})", call.method, call.about);
            match (ask(face, call, &token).await, told) {
                (Err(refusal), Told::Refused(code, reason)) => {
                    assert_eq!((refusal.code, refusal.reason.as_str()), (code, reason), "{context}: {refusal}");
                }
                (Err(refusal), Told::Hidden) => {
                    assert_eq!(refusal.code, Code::NotFound, "{context}: {refusal}");
                    let absent = ["VM_NOT_FOUND", "OPERATION_NOT_FOUND"];
                    assert!(absent.contains(&refusal.reason.as_str()), "{context}: {refusal}");
                }
                (Ok(message), Told::Nothing) => {
                    let found = message.windows(uuid.len()).any(|part| part == uuid.as_bytes());
                    assert!(!found, "{context}: the machine is in the answer");
                }
                (answer, told) => panic!("{context}: {answer:?} and not {told:?}"),
            }
        }
        world.unchanged(&format!("{fault:?}")).await;
    }
}

/// Without this the rest could be refused for any reason at all.
async fn the_good_one_does_what_it_says(world: &World, face: &Grpc, calls: &[Call]) {
    let uuid = world.guest.uuid().to_string();
    let token = world.lab.cluster.identity().admin_token().unwrap();
    for call in calls {
        let context = format!("a good token, {}", call.method);
        let told = match carry_out(face, call, call.sent(&token)).await {
            Ok(told) => told,
            // The operation has ended, which only who gets so far is told.
            Err(refusal) if (call.service, refusal.reason.as_str()) == (calls::AGENT, "NOT_CANCELLABLE") => continue,
            // There is none, which only who gets so far is told. `e2e_orphans` has one.
            Err(refusal) if (&*call.method, &*refusal.reason) == ("DeleteOrphan", "ORPHAN_NOT_FOUND") => continue,
            Err(refusal) => panic!("{context}: {refusal}"),
        };
        match (call.service, call.about) {
            (calls::AGENT, _) if call.method == "StartOperation" => {
                let last = agent::StartOperationResponse::decode(told.last().unwrap().as_slice()).unwrap();
                let Some(agent::operation_event::Event::Ended(ended)) = last.event.unwrap().event else {
                    panic!("{context}: no end");
                };
                assert_eq!(ended.state(), v1::OperationState::Succeeded, "{context}: {ended:?}");
            }
            (calls::AGENT, _) | (_, About::Hosts(_)) => {}
            (_, About::Machine("read") | About::Everything) => {
                let found = told.iter().any(|message| message.windows(uuid.len()).any(|part| part == uuid.as_bytes()));
                assert!(found, "{context}: the machine is not in the answer");
            }
            (_, About::Machine(_)) => {
                let operation = v1::Operation::decode(told.last().unwrap().as_slice()).unwrap();
                world.lab.client.done(Ok(operation)).await.unwrap_or_else(|error| panic!("{context}: {error}"));
            }
        }
    }
    // The last that changed anything was the purge, at the agent: the catalogue hears of it.
    world.lab.agreed_soon(&world.guest).await.unwrap();
    world.lab.nothing_left(&world.guest, &world.snapshot).await.unwrap();
    assert_eq!(world.guest.report().unwrap().disk, 'A', "the revert was one");
}
