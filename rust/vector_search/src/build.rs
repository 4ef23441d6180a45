//! Making and mending the graph: slots are linked in batches on all threads, erased ones are bridged.

use std::sync::{Mutex, PoisonError};

use crate::code::Coder;
use crate::fault::Result;
use crate::graph::{Visited, query_of};
use crate::isa::Isa;
use crate::rows::{DEGREE, Rows};
use crate::threads::Threads;

/// Candidates among which a new slot chooses its neighbours.
const EFFORT: usize = 64;
/// Links that a new slot begins with; others add theirs later.
const FIRST_LINKS: usize = 24;
/// Links that a full slot keeps when one more comes, so that it is not full again at once.
const KEPT_LINKS: usize = 24;
/// Slots linked before threads take turns: a small graph is made better by one.
const ALONE: usize = 512;
/// Slots of one batch: those of a batch hardly see each other.
const BATCH_MAX: usize = 8192;
/// Slots that one item of a thread's work links.
const ITEM: usize = 8;
/// Locks shared by all slots; two threads rarely want the same one.
const LOCKS: usize = 1024;

/// Links `slots` (live, not linked yet) into the graph of the slots before `linked`; returns how many are linked now.
pub(crate) fn link_all(
    rows: &Rows,
    coder: &Coder,
    slots: &[u32],
    mut linked: usize,
    threads: &Threads,
) -> Result<usize> {
    let locks: Vec<Mutex<()>> = (0..LOCKS).map(|_| Mutex::new(())).collect();
    let visited: Mutex<Vec<Visited>> = Mutex::new(Vec::new());
    let mut rest = slots;
    while !rest.is_empty() {
        let batch = if linked < ALONE { 1 } else { rest.len().min(linked / 2).min(BATCH_MAX) };
        let (now, later) = rest.split_at(batch);
        let done = threads.map(now.len().div_ceil(ITEM), |item| {
            let mut marks = visited.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
            let slots = &now[item * ITEM..now.len().min((item + 1) * ITEM)];
            let done = slots.iter().try_for_each(|slot| link(rows, coder, *slot, linked, &locks, &mut marks));
            visited.lock().unwrap_or_else(PoisonError::into_inner).push(marks);
            done
        });
        done.into_iter().collect::<Result<()>>()?;
        linked = now.iter().fold(linked, |linked, slot| linked.max(*slot as usize + 1));
        rest = later;
    }
    Ok(linked)
}

fn link(
    rows: &Rows,
    coder: &Coder,
    slot: u32,
    linked: usize,
    locks: &[Mutex<()>],
    visited: &mut Visited,
) -> Result<()> {
    let query = Isa::here().query(coder, rows.vector(slot))?;
    let mut near = Isa::here().walk(rows, &query, linked, EFFORT, None, visited);
    near.retain(|seen| seen.slot != slot);
    let neighbours = Isa::here().chosen(rows, coder, &query, &near, FIRST_LINKS);
    {
        let _mine = locks[slot as usize % LOCKS].lock().unwrap_or_else(PoisonError::into_inner);
        // Others of the batch may have linked to this slot already.
        let mut links: Vec<u32> = rows.neighbours(slot).collect();
        links.retain(|link| !neighbours.contains(link));
        links.splice(0..0, neighbours.iter().copied());
        links.truncate(DEGREE);
        rows.link(slot, &links);
    }
    for neighbour in neighbours {
        let _its = locks[neighbour as usize % LOCKS].lock().unwrap_or_else(PoisonError::into_inner);
        link_back(rows, coder, neighbour, slot);
    }
    Ok(())
}

/// Adds a link; where there is no room the neighbours are chosen anew.
fn link_back(rows: &Rows, coder: &Coder, from: u32, to: u32) {
    let mut links: Vec<u32> = rows.neighbours(from).collect();
    if links.contains(&to) {
        return;
    }
    links.push(to);
    if links.len() > DEGREE {
        let query = query_of(rows, coder, from);
        let mut near = Isa::here().scores(rows, &query, &links);
        near.retain(|seen| !seen.score.is_nan()); // a link to a slot that was erased meanwhile
        near.sort_unstable_by(|a, b| b.score.total_cmp(&a.score));
        links = Isa::here().chosen(rows, coder, &query, &near, KEPT_LINKS);
    }
    rows.link(from, &links);
}

/// Gives the neighbours of a slot that is about to be erased a way around it.
pub(crate) fn bridge(rows: &Rows, coder: &Coder, gone: u32) {
    let around: Vec<u32> = rows.neighbours(gone).filter(|slot| rows.live(*slot)).collect();
    for &from in &around {
        let mut links: Vec<u32> = rows.neighbours(from).collect();
        let Some(place) = links.iter().position(|link| *link == gone) else { continue };
        let query = query_of(rows, coder, from);
        let others: Vec<u32> =
            around.iter().copied().filter(|slot| *slot != from && !links.contains(slot)).collect();
        let best =
            Isa::here().scores(rows, &query, &others).into_iter().max_by(|a, b| a.score.total_cmp(&b.score));
        match best {
            Some(best) => links[place] = best.slot,
            None => {
                links.swap_remove(place);
            }
        }
        rows.link(from, &links);
    }
}
