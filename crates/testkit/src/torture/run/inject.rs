//! How each fault is made and taken away again.
//!
//! **Invariant:** a fault is over when this returns: proxies pass everything, both servers run, the follower goes on.
//! A fault that finds nothing to hit says so and is not counted.

use std::time::Duration;

use rustix::process::Signal;

use super::super::follower::{Ended, ended_within};
use super::super::plan::{Fault, Planned, Side};
use super::super::report::Failure;
use super::super::rig::DATABASE;
use super::{COMES_BACK_WITHIN, Run, STOPS_WITHIN, Step, rig_error, tables};
use crate::proxy::{self, Direction};

/// How long a commit may be waited for whose answer shall be lost.
const NEXT_COMMIT: Duration = Duration::from_secs(4);
const SECOND_ENDS_WITHIN: Duration = Duration::from_secs(30);

/// Makes a fault; whether it hit anything.
pub(super) fn inject(run: &mut Run<'_>, planned: &Planned) -> Step<bool> {
    run.event(&format!(
        "{:?}{}",
        planned.fault,
        if planned.kills_inside { " and kill -9 inside" } else { "" }
    ));
    match planned.fault {
        Fault::Kill => return kill(run),
        Fault::KillBehind(length) => return kill_behind(run, length),
        Fault::CleanStop => return clean_stop(run),
        Fault::Freeze(length) => return freeze(run, length, planned.kills_inside),
        Fault::LoseCommit(cut) => return lose_commit(run, cut),
        Fault::EndSession(side, number) => return end_session(run, side, number),
        Fault::Crash(side, length) => return crash(run, side, length, planned.kills_inside),
        Fault::SecondInstance { same_directory } => return second(run, same_directory),
        Fault::ShortFiles(bytes, length) => return short_files(run, bytes, length),
        Fault::FullDisk(length) => return full_disk(run, length),
        Fault::Rewrite => return tables::rewrite(run),
        Fault::Rejoin(number, length) => {
            return tables::rejoin(run, number, planned.kills_inside.then_some(length));
        }
        Fault::AddColumn(number) => return tables::add_column(run, number),
        Fault::Cut(side, cut) => run.rig.proxy(side).cut_all(cut),
        Fault::CutAt(side, direction, at, cut) => {
            run.rig.proxy(side).fault(direction, proxy::Fault::CutAfter(at, cut));
            run.hold(Duration::from_millis(800))?;
        }
        Fault::BlackHole(side, length) => {
            run.rig.proxy(side).fault(Direction::ToServer, proxy::Fault::BlackHole);
            run.rig.proxy(side).fault(Direction::ToClient, proxy::Fault::BlackHole);
            for_a_while(run, length, planned.kills_inside)?;
        }
        Fault::HalfBlackHole(side, direction, length) => {
            run.rig.proxy(side).fault(direction, proxy::Fault::BlackHole);
            for_a_while(run, length, planned.kills_inside)?;
        }
        Fault::Delay(side, late, length) => {
            run.rig.proxy(side).fault(Direction::ToServer, proxy::Fault::Delay(late));
            run.rig.proxy(side).fault(Direction::ToClient, proxy::Fault::Delay(late));
            for_a_while(run, length, planned.kills_inside)?;
        }
        Fault::Throttle(side, rate, length) => {
            run.rig.proxy(side).fault(Direction::ToServer, proxy::Fault::Throttle(rate));
            run.rig.proxy(side).fault(Direction::ToClient, proxy::Fault::Throttle(rate));
            for_a_while(run, length, planned.kills_inside)?;
        }
        Fault::Unreachable(side, length) => {
            run.rig.proxy(side).refuse_connections(true);
            run.rig.proxy(side).cut_all(proxy::Cut::Rst);
            for_a_while(run, length, planned.kills_inside)?;
        }
    }
    run.rig.source_proxy.heal();
    run.rig.target_proxy.heal();
    Ok(true)
}

/// The length of a fault, with a kill in its middle or without.
fn for_a_while(run: &mut Run<'_>, length: Duration, kills: bool) -> Step {
    if kills {
        run.hold(length / 2)?;
        kill(run)?;
        run.watch.other_fault();
        *run.faults.entry(Fault::Kill.kind()).or_default() += 1;
        return run.hold(length / 2);
    }
    run.hold(length)
}

/// Kills the follower and starts it again.
pub(super) fn kill(run: &mut Run<'_>) -> Step<bool> {
    if run.follower.pid() == 0 {
        // PostgreSQL's own has no process of ours; its worker is ended instead.
        run.watch.follower_was_killed();
        run.follower.signal(Signal::KILL).map_err(rig_error)?;
        return Ok(true);
    }
    run.watch.follower_was_killed();
    run.may_die = true;
    run.follower.signal(Signal::KILL).map_err(rig_error)?;
    let Some(ended) = ended_within(run.follower.as_mut(), STOPS_WITHIN).map_err(rig_error)? else {
        return Err(Failure { seen_by: "rig", detail: "a killed process does not end".to_owned() });
    };
    run.note_exit(ended);
    run.start_again()?;
    Ok(true)
}

/// Kills it when it has received what it cannot apply: what it said about that to the source must not be too much.
fn kill_behind(run: &mut Run<'_>, length: Duration) -> Step<bool> {
    // One that has caught up has nothing in its spool.
    let head = run.head()?;
    run.until(COMES_BACK_WITHIN, |_, seen| seen.position >= head)?;
    run.rig.target_proxy.fault(Direction::ToServer, proxy::Fault::BlackHole);
    run.rig.target_proxy.fault(Direction::ToClient, proxy::Fault::BlackHole);
    run.hold(length)?;
    let is_done = kill(run)?;
    run.rig.target_proxy.heal();
    Ok(is_done)
}

fn clean_stop(run: &mut Run<'_>) -> Step<bool> {
    stop(run)?;
    run.start_again()?;
    Ok(true)
}

/// Stops the follower by SIGTERM. Where it says that all it had received is there, the target is one state of the source,
/// in however many lanes it got there.
pub(super) fn stop(run: &mut Run<'_>) -> Step {
    run.may_die = true;
    run.follower.signal(Signal::TERM).map_err(rig_error)?;
    match ended_within(run.follower.as_mut(), STOPS_WITHIN).map_err(rig_error)? {
        // 8: it was about to give up for an earlier fault; 9: it was waiting for the job.
        Some(ended @ Ended::Code(0 | 130 | 8 | 9)) => {
            run.note_exit(ended);
            if ended == Ended::Code(0) { run.judge_at_rest() } else { Ok(()) }
        }
        Some(ended) => Err(run.bad_exit(ended)),
        None => {
            let detail =
                format!("SIGTERM is not heard within {STOPS_WITHIN:?}\n{}", run.follower.said());
            Err(Failure { seen_by: "stuck", detail })
        }
    }
}

fn freeze(run: &mut Run<'_>, length: Duration, kills: bool) -> Step<bool> {
    run.follower.signal(Signal::STOP).map_err(rig_error)?;
    run.hold(length)?;
    if kills {
        return kill(run);
    }
    run.follower.signal(Signal::CONT).map_err(rig_error)?;
    Ok(true)
}

fn lose_commit(run: &mut Run<'_>, cut: proxy::Cut) -> Step<bool> {
    let before = run.rig.target_proxy.fired();
    let proxy = &run.rig.target_proxy;
    proxy.fault(Direction::ToClient, proxy::Fault::LoseReply("COMMIT", cut));
    let rig = run.rig;
    let is_lost = run.until(NEXT_COMMIT, |_, _| rig.target_proxy.fired() > before)?;
    rig.target_proxy.heal();
    Ok(is_lost)
}

fn end_session(run: &mut Run<'_>, side: Side, number: u32) -> Step<bool> {
    let ours = format!(
        "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND {}",
        run.follower.sessions(side)
    );
    let sql = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid {ours} ORDER BY backend_start, pid \
         OFFSET {number} % greatest((SELECT count(*) {ours}), 1) LIMIT 1) s"
    );
    let ended = run.rig.cluster(side).psql(DATABASE, &sql).map_err(rig_error)?;
    Ok(ended == "1")
}

fn crash(run: &mut Run<'_>, side: Side, length: Duration, kills: bool) -> Step<bool> {
    let cluster = run.rig.cluster(side);
    // Before, because what is seen from now on may be gone; after, because it may have been seen until then.
    if side == Side::Target {
        run.watch.target_crashes();
    }
    cluster.stop_immediate().map_err(rig_error)?;
    if side == Side::Target {
        run.watch.target_crashes();
    }
    for_a_while(run, length, kills)?;
    cluster.start().map_err(rig_error)?;
    Ok(true)
}

/// Only beside a healthy one: where the first has lost the job, a second may take it.
fn second(run: &mut Run<'_>, same_directory: bool) -> Step<bool> {
    let head = run.head()?;
    let is_healthy = run.until(Duration::from_secs(20), |run, seen| {
        seen.position >= head && run.started.elapsed() > Duration::from_secs(2)
    })?;
    if !is_healthy || run.follower.pid() == 0 {
        return Ok(false);
    }
    let restarts = run.restarts;
    let ended = run.follower.second(same_directory, SECOND_ENDS_WITHIN).map_err(rig_error)?;
    run.hold(Duration::from_millis(50))?;
    if run.restarts > restarts {
        let detail = format!("the first instance ended beside a second\n{}", run.follower.said());
        return Err(Failure { seen_by: "second instance", detail });
    }
    if ended == Some(Ended::Code(9)) {
        return Ok(true);
    }
    let detail = format!(
        "same directory: {same_directory}, it ended with {ended:?}\n{}",
        run.follower.said()
    );
    Err(Failure { seen_by: "second instance", detail })
}

fn short_files(run: &mut Run<'_>, bytes: u64, length: Duration) -> Step<bool> {
    let restarts = run.restarts;
    run.may_die = true;
    run.follower.limit_files(Some(bytes)).map_err(rig_error)?;
    run.hold(length)?;
    run.follower.limit_files(None).map_err(rig_error)?;
    run.may_die = false;
    Ok(run.restarts > restarts)
}

fn full_disk(run: &mut Run<'_>, length: Duration) -> Step<bool> {
    let Some(disk) = run.rig.disk() else { return Ok(false) };
    disk.fill().map_err(rig_error)?;
    let held = run.hold(length);
    disk.free().map_err(rig_error)?;
    held?;
    Ok(true)
}
