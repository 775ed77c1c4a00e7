//! Creating a ring, or taking over what a dead producer left.

use std::{path::Path, sync::Arc, thread};

use forebay_layout::{
    Backing, Kind, RingName, check_ring_name,
    control::MAX_LABEL,
    geometry::Geometry,
    header::{LABEL_WORDS, W_EPOCH, W_LABEL, W_NUMA, W_PARKED, W_PID, W_STARTED, W_STATE, pack, state},
    schema::Schema,
};
use forebay_os::{
    Dir, EventFd, Held, LockFile, clock,
    numa::{self, Placement},
    process,
    socket::Listener,
};
use forebay_ring::{Publisher, Recovered, Words, broadcast::BroadcastProducer, queue::QueueProducer};
use std::sync::atomic::Ordering;

use super::{Core, Producer, ProducerOptions, Takeover, site::Site};
use crate::{
    error::CreateError,
    options::Numa,
    rendezvous::{
        client::label_of,
        lock_file,
        locks::{Locks, Taken},
        objects::{self, Care, Found, Objects},
        remove_temporaries, server, socket_file,
    },
};

pub(super) fn create(options: ProducerOptions) -> Result<Producer, CreateError> {
    let ring = options.ring.clone();
    let name = check_ring_name(&ring).map_err(|source| CreateError::Name { ring: ring.clone(), source })?;
    let geometry = options.geometry()?;
    geometry.plan().map_err(|source| CreateError::Geometry { ring: ring.clone(), source })?;
    let (node, unmet) = node_of(&options)?;
    let dir = Dir::open(options.dir.as_deref())?;
    let (file, held) = match Locks::take(&dir, &ring)? {
        Ok(taken) => taken,
        Err(Taken(holder)) => return Err(CreateError::Taken { ring, holder }),
    };
    let care = Care { prefault: options.prefault, mlock: options.mlock, huge_pages: options.huge_pages, node };
    let (file, held) = if options.fresh { start_over(&dir, &ring, care, (file, held))? } else { (file, held) };
    // Whatever fails from here on takes the name away again while it is still ours.
    let locks = Locks::new(file, held, &geometry).map_err(|(e, held)| {
        unname(&dir, &ring);
        drop(held);
        e
    })?;
    let label = label_of(&options.label);
    let furnished = (|| {
        locks.write_note(&format!("pid {} ({label})", process::my_pid()))?;
        let stop = EventFd::new()?;
        Ok((stop, furnish(&dir, &options, name, geometry, (&locks, care))?))
    })();
    let (stop, (mut objects, publisher, takeover)) = match furnished {
        Ok(furnished) => furnished,
        Err(e) => {
            unname(&dir, &ring);
            return Err(e);
        }
    };
    let epoch = takeover.as_ref().map_or(1, |takeover| takeover.epoch);
    objects.notes.extend(unmet);
    introduce(&objects, epoch, &label);
    say_where(&mut objects, options.numa.as_ref(), node);
    let site = Arc::new(Site::new(ring, dir, objects, locks, epoch, stop));
    let core = open_core(&site, publisher);
    match serve(&site) {
        Ok(thread) => Ok(Producer::assemble(site, core, options, thread, takeover)),
        Err(e) => {
            // What a predecessor left stays for the next who tries.
            remove(&site, takeover.is_some());
            Err(e.into())
        }
    }
}

/// The NUMA node that is wished for, or why it cannot be told.
fn node_of(options: &ProducerOptions) -> Result<(Option<u32>, Option<String>), CreateError> {
    let Some(wish) = &options.numa else { return Ok((None, None)) };
    let wrong = |what| CreateError::Options { ring: options.ring.clone(), what };
    let devices = Path::new(numa::PCI_DEVICES);
    let bus_id = match wish {
        Numa::Node(node) => {
            let nodes = numa::nodes();
            if !nodes.contains(node) {
                return Err(wrong(format!(
                    "there is no NUMA node {node} with memory, there is {nodes:?}; give one of those"
                )));
            }
            return Ok((Some(*node), None));
        }
        Numa::Device(bus_id) => bus_id.clone(),
        Numa::Gpu(number) => {
            let mut gpus = numa::gpus(devices);
            if *number as usize >= gpus.len() {
                let found = gpus.len();
                return Err(wrong(format!(
                    "there is no gpu:{number}, {found} NVIDIA GPUs were found; give a node's number"
                )));
            }
            gpus.swap_remove(*number as usize)
        }
    };
    match numa::node_of_device(devices, &bus_id) {
        Some(node) => Ok((Some(node), None)),
        None if devices.join(bus_id.to_ascii_lowercase()).exists() => {
            Ok((None, Some(format!("slots from any NUMA node: the host does not say which one {bus_id} is near"))))
        }
        None => Err(wrong(format!("there is no PCI device {bus_id}; `nvidia-smi -q` lists bus ids"))),
    }
}

/// Notes where the slots lie, if that was wished.
fn say_where(objects: &mut Objects, wish: Option<&Numa>, node: Option<u32>) {
    let Some(node) = node else { return };
    let found = numa::placement(objects.data.mapping());
    // ORDER none, Relaxed: for people.
    let set = |value: u64| objects.ring.word(W_NUMA).store(value, Ordering::Relaxed);
    match found {
        Placement::Node(found) => set(u64::from(found) + 1),
        Placement::Mixed | Placement::Unknown => set(0),
    }
    if found != Placement::Node(node) {
        let where_ = match found {
            Placement::Node(found) => format!("they lie on node {found}"),
            Placement::Mixed => "they lie on several nodes".to_owned(),
            Placement::Unknown => "the kernel does not say where they lie".to_owned(),
        };
        let wish = wish.map_or_else(String::new, |wish| format!(" ({wish})"));
        objects.notes.push(format!("slots were wished on NUMA node {node}{wish}, {where_}"));
    }
}

/// Nothing stays of a ring that was not made; one that is there keeps its lock file. The caller holds its lock.
fn unname(dir: &Dir, ring: &str) {
    if objects::names_of(dir, ring).is_ok_and(|names| names.is_empty()) {
        // The error that brought us here is the one to tell.
        let _ = dir.remove(&lock_file(ring));
    }
}

/// Starts the control thread. The socket comes last: who connects finds everything in place.
fn serve(site: &Arc<Site>) -> forebay_os::Result<thread::JoinHandle<()>> {
    remove_temporaries(&site.dir, &site.ring)?;
    let mut listener = Listener::bind(&site.dir, &socket_file(&site.ring))?;
    listener.unlink_on_drop(true);
    let name = format!("forebay-{}", site.ring);
    let site = Arc::clone(site);
    let thread = thread::Builder::new().name(name).spawn(move || server::run(&site, &listener));
    thread.map_err(|e| forebay_os::OsError::new("clone", "the control thread", e))
}

type Furnished = (Objects, Publisher<crate::segment::Segment>, Option<Takeover>);

/// The objects of the ring: those that a dead producer left, or new ones.
fn furnish(
    dir: &Dir,
    options: &ProducerOptions,
    name: RingName,
    geometry: Geometry,
    (locks, care): (&Locks, Care),
) -> Result<Furnished, CreateError> {
    if let Some((objects, publisher, takeover)) = predecessor(dir, options, name, &geometry, (locks, care))? {
        return Ok((objects, publisher, Some(takeover)));
    }
    let objects = Objects::create(dir, name, geometry, options.schema.as_ref(), care, |i| locks.guard(i))?;
    let publisher = Publisher::new(objects.ring.clone(), slot_words(&objects), objects.header.plan.clone(), 1);
    Ok((objects, publisher, None))
}

/// Where the slot words of a ring lie.
fn slot_words(objects: &Objects) -> crate::segment::Segment {
    objects.pool.clone().unwrap_or_else(|| objects.ring.clone())
}

fn open_core(site: &Site, publisher: Publisher<crate::segment::Segment>) -> Core {
    let stay = site.adopt_members();
    match site.kind() {
        Kind::Queue => Core::Queue(QueueProducer::new(publisher)),
        Kind::Broadcast => {
            let mut core = BroadcastProducer::new(publisher, site.objects.ring.clone());
            for (index, incarnation) in stay {
                core.readmit(index, incarnation, site.part(index).clone());
            }
            core.set_parked(false);
            Core::Broadcast(core)
        }
    }
}

/// Writes who the producer is, and that it is open.
fn introduce(objects: &Objects, epoch: u64, label: &str) {
    // ORDER none, Relaxed: for people, and for consumers who only compare.
    let set = |index: usize, value: u64| objects.ring.word(index).store(value, Ordering::Relaxed);
    set(W_PID, process::my_pid().into());
    set(W_STARTED, clock::realtime_ns());
    let mut words = [0; LABEL_WORDS];
    for (word, chunk) in words.iter_mut().zip(label.as_bytes().chunks(8)) {
        *word = pack(chunk);
    }
    for (i, word) in words.into_iter().enumerate() {
        set(W_LABEL + i, word);
    }
    const { assert!(LABEL_WORDS * 8 == MAX_LABEL) };
    set(W_PARKED, 0);
    set(W_EPOCH, epoch);
    // ORDER Release: whoever sees the ring open sees who opened it.
    objects.ring.word(W_STATE).store(state::OPEN, Ordering::Release);
}

type Predecessor = (Objects, Publisher<crate::segment::Segment>, Takeover);

/// What a dead producer left under this name, if it can be taken over; cleans it away if it is not a whole ring.
fn predecessor(
    dir: &Dir,
    options: &ProducerOptions,
    name: RingName,
    geometry: &Geometry,
    (locks, care): (&Locks, Care),
) -> Result<Option<Predecessor>, CreateError> {
    let ring = name.as_str();
    let found = match Objects::open(dir, ring, care)? {
        Found::Nothing => None,
        Found::Unfinished => None,
        Found::Foreign(difference) => {
            // It may be full of messages for whoever can read it: that is not ours to throw away unasked.
            return Err(CreateError::Different { ring: ring.to_owned(), difference, outstanding: 0 });
        }
        // Of an earlier life of the directory, or of a producer whose lock file somebody deleted and who may live: the
        // memory is not ours. Its name is.
        Found::Ring(found) if locks.instance()? != Some(found.0.header.instance) => None,
        Found::Ring(found) => Some(*found),
    };
    let Some((objects, schema)) = found else {
        // A memfd ring leaves no objects; parts of a half-made posix one go. We hold the name's lock.
        objects::unlink_all(dir, ring)?;
        return Ok(None);
    };
    let epoch = objects.ring.word(W_EPOCH).load(Ordering::Relaxed).wrapping_add(1).max(1);
    // Whoever is refused has changed nothing: another may be the right successor.
    let left = || Publisher::count_left(&objects.ring, &slot_words(&objects), &objects.header.plan);
    if let Some(difference) = differs(&objects, schema.as_ref(), options, geometry) {
        return Err(CreateError::Different { ring: ring.to_owned(), difference, outstanding: left() });
    }
    match Publisher::take_over(objects.ring.clone(), slot_words(&objects), objects.header.plan.clone(), epoch) {
        Ok((publisher, Recovered { last_sequence, last_user, outstanding })) => {
            let takeover = Takeover { epoch, last_sequence, last_user, outstanding };
            Ok(Some((objects, publisher, takeover)))
        }
        Err(source) => Err(CreateError::Damaged { ring: ring.to_owned(), source, outstanding: left() }),
    }
}

fn differs(objects: &Objects, schema: Option<&Schema>, options: &ProducerOptions, own: &Geometry) -> Option<String> {
    if schema != options.schema.as_ref() {
        let show = |schema: Option<&Schema>| schema.map_or("no schema".to_owned(), |schema| format!("schema {schema}"));
        return Some(format!("{}, expected {}", show(schema), show(options.schema.as_ref())));
    }
    let found = &objects.header.geometry;
    if found == own {
        return None;
    }
    let fields: [(&str, String, String); 8] = [
        ("kind", found.kind.to_string(), own.kind.to_string()),
        ("backing", found.backing.to_string(), own.backing.to_string()),
        ("when_full", found.when_full.to_string(), own.when_full.to_string()),
        ("writable", found.writable.to_string(), own.writable.to_string()),
        ("max_consumers", found.max_consumers.to_string(), own.max_consumers.to_string()),
        ("max_attempts", found.max_attempts.to_string(), own.max_attempts.to_string()),
        ("quota", found.quota.to_string(), own.quota.to_string()),
        ("slots", classes(found), classes(own)),
    ];
    let list: Vec<String> = fields
        .iter()
        .filter(|(_, found, own)| found != own)
        .map(|(name, found, own)| format!("{name} {found}, expected {own}"))
        .collect();
    Some(list.join("; "))
}

fn classes(geometry: &Geometry) -> String {
    geometry.classes.iter().map(|c| format!("{}×{}", c.slots, c.slot_bytes)).collect::<Vec<_>>().join("+")
}

/// Discards whatever a dead producer left, and its lock file with it: the old ring's consumers hold on to their bytes
/// in that one, and must not take places in the new ring.
fn start_over(
    dir: &Dir,
    ring: &str,
    care: Care,
    (file, held): (LockFile, Held),
) -> Result<(LockFile, Held), CreateError> {
    match Objects::open(dir, ring, care) {
        Ok(Found::Nothing) => return Ok((file, held)),
        Ok(Found::Ring(found)) => discard(dir, ring, &found.0)?,
        // Whatever it is, it cannot be told; only its name is taken away.
        Ok(Found::Unfinished | Found::Foreign(_)) | Err(_) => drop(objects::unlink_all(dir, ring)?),
    }
    dir.remove(&lock_file(ring))?;
    // Who finds no lock file now makes a new one and, being first, has the name. The old lock goes after that.
    match Locks::take(dir, ring)? {
        Ok(taken) => Ok(taken),
        Err(Taken(holder)) => Err(CreateError::Taken { ring: ring.to_owned(), holder }),
    }
}

/// Tells the consumers of the old ring, then takes its name away.
fn discard(dir: &Dir, ring: &str, objects: &Objects) -> Result<(), CreateError> {
    use forebay_os::futex;
    use forebay_ring::Member;
    // ORDER Release: as closing; consumers drain what is there.
    objects.ring.word(W_STATE).store(state::REPLACED, Ordering::Release);
    let plan = &objects.header.plan;
    let parts: Vec<_> = match &objects.pool {
        Some(pool) => (0..objects.header.geometry.max_consumers)
            .map(|index| Member::in_pool(pool.clone(), plan, index as u8))
            .collect(),
        None => objects.members.iter().map(|words| Member::in_object(words.clone(), plan)).collect(),
    };
    for part in parts {
        part.ring_bell();
        futex::wake(futex::low_half(part.wake_word()), 1);
    }
    objects::unlink_all(dir, ring)?;
    Ok(())
}

/// What stays behind when a producer closes: nothing, unless messages wait for consumers that are not there yet.
pub(super) fn remove(site: &Site, keep: bool) {
    // Nobody can take a memfd ring over, whatever is left in it.
    let keep = keep && site.objects.header.geometry.backing == Backing::Posix;
    // If somebody deleted our lock file, what the names lead to may be another producer's.
    if !keep && site.locks.is_current(&site.dir, &site.ring) {
        if site.objects.header.geometry.backing == Backing::Posix {
            // At the end of a producer's life there is nobody to tell; `forebay clean` finds what stays.
            let _ = objects::unlink_own(&site.dir, &site.objects.header);
        }
        let _ = site.dir.remove(&lock_file(&site.ring));
    }
    // A view of a loan may keep the memory mapped for long; the name is free now, unless a successor would find this very
    // memory, and a detached loan can still write it.
    if keep { site.hand_over() } else { site.locks.release() }
}
