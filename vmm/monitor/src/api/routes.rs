//! What each request does.

use serde::Deserialize;
use serde_json::json;

use super::http::{Request, Response};
use crate::life::{Life, LifeError};

/// Version of the interface, as in its paths.
const API_VERSION: u32 = 1;

/// Body of `PUT /v1/stop`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stop {
    mode: StopMode,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum StopMode {
    PowerButton,
    Kill,
}

/// Does what a request asks for.
pub fn answer(request: &Request, life: &mut Life) -> Response {
    let method = request.method.as_str();
    let (expected, route): (_, fn(&Request, &mut Life) -> Response) = match request.path.as_str() {
        "/v1/version" => ("GET", |_, _| version()),
        "/v1/state" => ("GET", |_, life| state(life)),
        "/v1/metrics" => ("GET", |_, life| metrics(life)),
        "/v1/pause" => ("PUT", |_, life| changed(life.pause())),
        "/v1/resume" => ("PUT", |_, life| changed(life.resume())),
        "/v1/stop" => ("PUT", stop),
        _ => {
            return Response::error(
                404,
                "there is no such path; this is version 1 of the interface, under /v1",
            );
        }
    };
    if method != expected {
        return Response::error(405, &format!("this path takes {expected} only"));
    }
    if !request.body.is_empty() && request.path != "/v1/stop" {
        return Response::error(400, "this path takes no body");
    }
    route(request, life)
}

fn version() -> Response {
    Response::ok(json!({
        "name": env!("CARGO_PKG_NAME"),
        "version": env!("CARGO_PKG_VERSION"),
        "api": API_VERSION,
    }))
}

fn state(life: &Life) -> Response {
    Response::ok(json!({ "name": life.name(), "state": life.state() }))
}

fn metrics(life: &Life) -> Response {
    let machine = life.machine();
    let each: Vec<_> = machine.crew.exits().collect();
    Response::ok(json!({
        "exits": each.iter().copied().sum::<crate::metrics::ExitReport>(),
        "exits_by_vcpu": each,
        "timeline_us": life.timeline().report(),
        "guest_memory_bytes": machine.ram.size(),
    }))
}

fn stop(request: &Request, life: &mut Life) -> Response {
    match serde_json::from_slice(&request.body) {
        Ok(Stop {
            mode: StopMode::PowerButton,
        }) => changed(life.press_power_button()),
        Ok(Stop {
            mode: StopMode::Kill,
        }) => {
            life.kill();
            Response::done()
        }
        Err(_) => Response::error(
            400,
            "the body has to be {\"mode\":\"power-button\"} or {\"mode\":\"kill\"}",
        ),
    }
}

fn changed(result: Result<(), LifeError>) -> Response {
    match result {
        Ok(()) => Response::done(),
        Err(error @ LifeError::State { .. }) => Response::error(409, &error.to_string()),
        Err(error @ LifeError::Crew(_)) => Response::error(500, &error.to_string()),
    }
}
