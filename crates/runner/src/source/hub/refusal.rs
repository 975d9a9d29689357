//! What the hub's refusals and failures mean, in terms of the recipe, and what to do about them.

use super::choice::Repository;
use super::download::Fault;
use super::{http, token};
use crate::error::{Class, Error};

/// Why a file of a repository was not to be had, in terms of the recipe.
pub(super) fn refused(
    name: &str,
    repository: &Repository,
    endpoint: &str,
    has_token: bool,
    fault: Fault,
) -> Error {
    let id = &repository.id;
    let kind = if repository.dataset { "datasets/" } else { "" };
    let page = format!("{endpoint}/{kind}{id}");
    let (class, message, help) = match &fault {
        Fault::Http {
            failure: http::Failure::Status { status, code, .. },
            ..
        } if matches!(*status, 401 | 403) => access(id, &page, *status, code.as_deref(), has_token),
        Fault::Http {
            failure: http::Failure::Status { status: 404, .. },
            ..
        } => (
            Class::Infra,
            format!("'{id}': the hub lists a file that it does not have: {fault}"),
            "run again; if it stays so, the repository is damaged".to_owned(),
        ),
        Fault::Damaged { .. } => (
            Class::Integrity,
            format!("'{id}': {fault}"),
            "run again to download it anew; if it stays so, the server or a proxy on the way changes it".to_owned(),
        ),
        Fault::Name(_) => (
            Class::Config,
            format!("'{id}': {fault}"),
            "do not use this repository, or choose other files with the source's `files`".to_owned(),
        ),
        Fault::Cache { source, .. } if crate::space::is_full(source) => {
            (Class::Infra, format!("'{id}': {fault}"), crate::space::HELP.to_owned())
        }
        _ => (
            Class::Infra,
            format!("'{id}': {fault}"),
            "check the network and HF_ENDPOINT, and run again: what came is kept".to_owned(),
        ),
    };
    Error::Source {
        name: name.into(),
        message,
        class,
        help: Some(help),
    }
}

/// What a refusal by the hub means, and what to do about it.
fn access(
    id: &str,
    page: &str,
    status: u16,
    code: Option<&str>,
    has_token: bool,
) -> (Class, String, String) {
    let gated = code == Some("GatedRepo");
    let (message, help) = match (status, has_token) {
        (401, false) => (
            format!(
                "the hub wants to know who reads '{id}'{}",
                if gated { ", which is gated" } else { "" }
            ),
            "set HF_TOKEN, or log in with `hf auth login`".to_owned(),
        ),
        (401, true) => (
            format!("the hub does not accept the token that is to read '{id}'"),
            "set HF_TOKEN to one that is valid, or log in again with `hf auth login`".to_owned(),
        ),
        _ if gated => (
            format!("'{id}' is gated, and the token's account may not read it yet"),
            format!("ask for access at {page}, then run again"),
        ),
        _ => (
            format!("the hub refuses access to '{id}'"),
            "set HF_TOKEN to a token that may read it".to_owned(),
        ),
    };
    (Class::Config, message, help)
}

pub(super) fn explain(name: &str, repo: &str, revision: &str, e: &hf_hub::HFError) -> Error {
    use hf_hub::HFError as E;
    let source = |message: String, class, help: &str| Error::Source {
        name: name.into(),
        message,
        class,
        help: Some(help.into()),
    };
    match e {
        E::RepoNotFound { .. } => source(
            format!("the hub has no repository '{repo}', or it is private"),
            Class::Config,
            "check the name; for a private or gated repository set HF_TOKEN",
        ),
        E::RevisionNotFound { .. } => source(
            format!("'{repo}' has no revision '{revision}'"),
            Class::Config,
            "check the source's `revision`",
        ),
        E::AuthRequired { context } | E::Forbidden { context } => {
            let (code, has_token) = (context.error_code.as_deref(), token().is_some());
            if code == Some("RepoNotFound") && !has_token {
                return source(
                    format!("the hub has no repository '{repo}', or it is private"),
                    Class::Config,
                    "check the name; for a private repository set HF_TOKEN, or log in with `hf auth login`",
                );
            }
            let page = format!("the page of '{repo}' on the hub");
            let (class, message, help) =
                access(repo, &page, context.status.as_u16(), code, has_token);
            source(message, class, &help)
        }
        other => source(
            format!("'{repo}': {}", http::redact(&other.to_string())),
            Class::Infra,
            "check the network and HF_ENDPOINT, and run again",
        ),
    }
}
