//! The columns: what is wrong with a call, and what its caller is told.

use serde_json::json;
use tests::cluster::{ALL_ACTIONS, forwarded};
use tonic::Code;

use crate::calls::{AGENT, About, Call, spend};
use crate::forge::{Forge, SECRET, grant, now};
use crate::world::World;

/// What is wrong with the certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Certificate {
    None,
    OfAnotherAuthority,
    WithAnotherName,
}

impl Certificate {
    pub(crate) const ALL: [Self; 3] = [Self::None, Self::OfAnotherAuthority, Self::WithAnotherName];
}

/// What is wrong with the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    None,
    Malformed,
    /// The token alone, at the API.
    WithoutSecret,
    WrongSecret,
    SecretTwice,
    /// At an agent, which may not receive one.
    WithSecret,
    /// A token that is bound to no secret.
    WithoutConfirmation,
    Expired,
    NotYetValid,
    WrongAudience,
    UnknownKid,
    HmacOfPublicKey,
    AlgorithmNone,
    OtherMachine,
    OtherAction,
    AboveCeiling,
    Replayed,
}

/// How a call is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// With this code and reason.
    Refused(Code, &'static str),
    /// As for what does not exist.
    Hidden,
    /// An answer in which there is nothing of the machine.
    Nothing,
}

impl Token {
    pub(crate) const ALL: [Self; 17] = [
        Self::None,
        Self::Malformed,
        Self::WithoutSecret,
        Self::WrongSecret,
        Self::SecretTwice,
        Self::WithSecret,
        Self::WithoutConfirmation,
        Self::Expired,
        Self::NotYetValid,
        Self::WrongAudience,
        Self::UnknownKid,
        Self::HmacOfPublicKey,
        Self::AlgorithmNone,
        Self::OtherMachine,
        Self::OtherAction,
        Self::AboveCeiling,
        Self::Replayed,
    ];

    /// What is sent with this call; empty for nothing.
    pub(crate) async fn make(self, world: &World, call: &Call) -> String {
        let credential = self.credential(world, call).await;
        if self == Self::WithSecret { credential } else { call.sent(&credential).to_owned() }
    }

    async fn credential(self, world: &World, call: &Call) -> String {
        let ravada = Forge::ravada(world.lab.cluster.identity());
        let good = ravada.claims(json!([grant("*", &ALL_ACTIONS)]));
        let changed = |changes: serde_json::Value| {
            let mut claims = good.clone();
            claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            ravada.sign(&claims)
        };
        match self {
            Self::None => String::new(),
            Self::Malformed => format!("not.a.token~{SECRET}"),
            Self::WithoutSecret => forwarded(&ravada.sign(&good)).to_owned(),
            Self::WrongSecret => format!("{}~{}", forwarded(&ravada.sign(&good)), SECRET.to_lowercase()),
            Self::SecretTwice => format!("{}~{SECRET}", ravada.sign(&good)),
            Self::WithSecret => ravada.sign(&good),
            Self::WithoutConfirmation => changed(json!({ "cnf": null })),
            Self::Expired => changed(json!({ "iat": now() - 900, "exp": now() - 600 })),
            Self::NotYetValid => changed(json!({ "nbf": now() + 200 })),
            Self::WrongAudience => changed(json!({ "aud": "another-service" })),
            Self::UnknownKid => ravada.sign_as(&good, "unheard-of"),
            Self::HmacOfPublicKey => ravada.sign_by_public_key(&good),
            Self::AlgorithmNone => ravada.unsigned(&good),
            Self::OtherMachine => changed(json!({ "grants": [grant(&world.spare.uuid().to_string(), &ALL_ACTIONS)] })),
            Self::OtherAction => {
                let others: Vec<_> = ALL_ACTIONS.into_iter().filter(|action| *action != call.right()).collect();
                changed(json!({ "grants": [grant("*", &others)] }))
            }
            Self::AboveCeiling => {
                let careful = world.careful();
                careful.sign(&careful.claims(json!([grant("*", &["read"])])))
            }
            Self::Replayed => {
                let careful = world.careful();
                let machines = [&world.guest, &world.spare].map(|guest| {
                    grant(&guest.uuid().to_string(), &["read", "create", "update", "revert", "delete", "purge"])
                });
                let token = careful.sign(&careful.claims(json!(machines)));
                spend(world, &token).await;
                token
            }
        }
    }

    /// What this call's caller is told; `None` where the fault is none for it.
    pub(crate) fn told(self, call: &Call) -> Option<Told> {
        let invalid = Told::Refused(Code::Unauthenticated, "TOKEN_INVALID");
        let denied = Told::Refused(Code::PermissionDenied, "ACTION_NOT_GRANTED");
        Some(match (self, call.about) {
            // What an agent is sent, and what the API is sent.
            (Self::WithoutSecret | Self::WrongSecret | Self::SecretTwice, _) if call.service == AGENT => return None,
            (Self::WithSecret, _) if call.service != AGENT => return None,
            (Self::None, _) => Told::Refused(Code::Unauthenticated, "TOKEN_MISSING"),
            (Self::Expired | Self::NotYetValid, _) => Told::Refused(Code::Unauthenticated, "TOKEN_EXPIRED"),
            (
                Self::Malformed
                | Self::WithoutSecret
                | Self::WrongSecret
                | Self::SecretTwice
                | Self::WithSecret
                | Self::WithoutConfirmation
                | Self::WrongAudience
                | Self::UnknownKid
                | Self::HmacOfPublicKey
                | Self::AlgorithmNone
                | Self::AboveCeiling,
                _,
            ) => invalid,
            (Self::OtherMachine | Self::OtherAction, About::Hosts(_)) => denied,
            (Self::OtherMachine | Self::OtherAction, About::Everything) => Told::Nothing,
            (Self::OtherMachine, About::Machine(_)) | (Self::OtherAction, About::Machine("read")) => Told::Hidden,
            (Self::OtherAction, About::Machine(_)) => denied,
            // Reading twice with a token is what it is for, and a create is named by its request_id.
            (Self::Replayed, _) if !call.is_destructive() => return None,
            (Self::Replayed, _) => Told::Refused(Code::Unauthenticated, "TOKEN_SPENT"),
        })
    }
}
