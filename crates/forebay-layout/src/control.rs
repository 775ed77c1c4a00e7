//! The messages of the rendezvous socket. Each is one packet of [`FRAME_WORDS`] little-endian words.
//!
//! ```text
//!   client                                server
//!   Hello(attach | rejoin | observe)  ──▶
//!                                     ◀──  Welcome + descriptors, or Refuse
//!   Ready (lock byte held, mapped)    ──▶
//!                                     ◀──  Admitted: from now on messages are offered
//!   Leave                             ──▶  (hanging up does the same; dying is found by the lock byte)
//!
//!   word 0 FRAME_MAGIC   word 1 type   word 2… fields, in the order of the structs below
//! ```

use arrayvec::ArrayString;

use crate::{Defect, MAX_CONSUMERS, RingName, check_ring_name, header::pack};

/// Words of every packet.
pub const FRAME_WORDS: usize = 64;
/// Bytes of every packet.
pub const FRAME_BYTES: usize = FRAME_WORDS * 8;
/// First word: "FBCTRL01". Another number means another control version.
pub const FRAME_MAGIC: u64 = u64::from_le_bytes(*b"FBCTRL01");
/// Longest label, in bytes.
pub const MAX_LABEL: usize = 64;
/// Longest text of a refusal, in bytes.
pub const MAX_REASON: usize = 400;

/// Who a peer says it is; for people to read.
pub type Label = ArrayString<MAX_LABEL>;

/// One packet.
pub type Frame = [u64; FRAME_WORDS];

/// What the client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// Become a member.
    Attach,
    /// Go on as the member it already is, with a restarted producer.
    Rejoin {
        /// Instance of the objects it has mapped.
        instance: [u64; 2],
        /// Its member index.
        index: u32,
        /// Its incarnation.
        incarnation: u32,
    },
    /// Only look.
    Observe,
}

/// The first packet of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// What it wants.
    pub intent: Intent,
    /// Layout major version it reads.
    pub layout_major: u16,
    /// It registered for membarrier.
    pub membarrier: bool,
    /// Its pid in its own namespace; for people to read.
    pub pid: u32,
    /// The ring it thinks it talks to.
    pub ring: RingName,
    /// Who it says it is.
    pub label: Label,
}

/// The server's answer to a Hello it accepts. Descriptors travel with it, in this order:
/// attach: ring, data, pool or member object, lock to hold, lock to probe, eventfd;
/// rejoin: eventfd; observe: ring, lock to probe, then pool or every member object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome {
    /// Instance of the objects.
    pub instance: [u64; 2],
    /// The producer's life number.
    pub epoch: u64,
    /// The member's index.
    pub index: u32,
    /// The member's incarnation.
    pub incarnation: u32,
    /// Byte of the lock file that stands for this member.
    pub lock_byte: u64,
    /// Byte of the lock file that stands for the producer.
    pub producer_byte: u64,
}

/// Why a server says no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RefuseCode {
    /// Other layout or control version.
    Version = 1,
    /// The peer's user is not allowed.
    User = 2,
    /// All members' places are taken.
    Full = 3,
    /// The client asked for another ring.
    Ring = 4,
    /// The member that wants to go on is not known here.
    Stranger = 5,
    /// The server could not do it.
    Failed = 6,
}

impl RefuseCode {
    fn from_code(code: u64) -> Option<Self> {
        use RefuseCode::*;
        [Version, User, Full, Ring, Stranger, Failed].into_iter().find(|c| *c as u64 == code)
    }
}

/// A packet, read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "lives on the stack for the length of a handshake")]
pub enum Control {
    /// See [`Hello`].
    Hello(Hello),
    /// See [`Welcome`].
    Welcome(Welcome),
    /// No: the code for programs, the text for people.
    Refuse(RefuseCode, ArrayString<MAX_REASON>),
    /// The client holds its lock byte and has everything mapped.
    Ready,
    /// The client is a member now.
    Admitted,
    /// The client wants no more messages.
    Leave,
}

impl Control {
    /// The packet.
    #[must_use]
    pub fn encode(&self) -> Frame {
        let mut w = Writer { frame: [0; FRAME_WORDS], at: 0 };
        w.put(FRAME_MAGIC);
        match self {
            Self::Hello(hello) => {
                let (intent, instance, index, incarnation) = match hello.intent {
                    Intent::Attach => (1, [0; 2], 0, 0),
                    Intent::Rejoin { instance, index, incarnation } => (2, instance, index, incarnation),
                    Intent::Observe => (3, [0; 2], 0, 0),
                };
                w.put(1);
                w.put(intent);
                w.put(instance[0]);
                w.put(instance[1]);
                w.put(u64::from(index) | u64::from(incarnation) << 32);
                w.put(u64::from(hello.layout_major) | u64::from(hello.membarrier) << 16);
                w.put(hello.pid.into());
                w.text(&hello.ring, 8);
                w.text(&hello.label, 8);
            }
            Self::Welcome(welcome) => {
                w.put(2);
                w.put(welcome.instance[0]);
                w.put(welcome.instance[1]);
                w.put(welcome.epoch);
                w.put(u64::from(welcome.index) | u64::from(welcome.incarnation) << 32);
                w.put(welcome.lock_byte);
                w.put(welcome.producer_byte);
            }
            Self::Refuse(code, text) => {
                w.put(3);
                w.put(*code as u64);
                w.text(text, MAX_REASON / 8);
            }
            Self::Ready => w.put(4),
            Self::Admitted => w.put(5),
            Self::Leave => w.put(6),
        }
        w.frame
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// The first word that cannot be right.
    pub fn decode(frame: &Frame) -> Result<Self, Defect> {
        let mut r = Reader { frame, at: 0 };
        let magic = r.take();
        if magic != FRAME_MAGIC {
            return Err(Defect::bounded(
                "control.magic",
                magic,
                "a forebay control packet, starting with",
                FRAME_MAGIC,
            ));
        }
        let kind = r.take();
        let message = match kind {
            1 => Self::Hello(r.hello()?),
            2 => {
                let instance = [r.take(), r.take()];
                let epoch = r.take();
                let (index, incarnation) = r.pair();
                if index as usize >= MAX_CONSUMERS {
                    return Err(Defect::bounded("welcome.index", index.into(), "below", MAX_CONSUMERS as u64));
                }
                let (lock_byte, producer_byte) = (r.take(), r.take());
                for byte in [lock_byte, producer_byte] {
                    if byte > 1 << 32 {
                        return Err(Defect::bounded("welcome.lock_byte", byte, "at most", 1 << 32));
                    }
                }
                Self::Welcome(Welcome { instance, epoch, index, incarnation, lock_byte, producer_byte })
            }
            3 => {
                let code = r.take();
                let code = RefuseCode::from_code(code).ok_or(Defect::new("refuse.code", code, "a code from 1 to 6"))?;
                Self::Refuse(code, r.text("refuse.text", MAX_REASON / 8)?)
            }
            4 => Self::Ready,
            5 => Self::Admitted,
            6 => Self::Leave,
            _ => {
                return Err(Defect::new("control.type", kind, "a packet type from 1 to 6"));
            }
        };
        r.rest_is_zero()?;
        Ok(message)
    }
}

struct Writer {
    frame: Frame,
    at: usize,
}

impl Writer {
    fn put(&mut self, word: u64) {
        if let Some(to) = self.frame.get_mut(self.at) {
            *to = word;
        }
        self.at = self.at.saturating_add(1);
    }

    fn text(&mut self, text: &str, words: usize) {
        let mut chunks = text.as_bytes().chunks(8);
        for _ in 0..words {
            self.put(chunks.next().map_or(0, pack));
        }
    }
}

struct Reader<'a> {
    frame: &'a Frame,
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self) -> u64 {
        let word = self.frame.get(self.at).copied().unwrap_or(0);
        self.at = self.at.saturating_add(1);
        word
    }

    fn pair(&mut self) -> (u32, u32) {
        let word = self.take();
        ((word & 0xffff_ffff) as u32, (word >> 32) as u32)
    }

    fn text<const N: usize>(&mut self, field: &'static str, words: usize) -> Result<ArrayString<N>, Defect> {
        let mut bytes = [0u8; N];
        for chunk in bytes.chunks_mut(8).take(words) {
            let word = self.take().to_le_bytes();
            for (to, from) in chunk.iter_mut().zip(word) {
                *to = from;
            }
        }
        let len = bytes.iter().position(|&b| b == 0).unwrap_or(N);
        let (text, rest) = bytes.split_at_checked(len).unwrap_or((&[], &[]));
        if rest.iter().any(|&b| b != 0) {
            return Err(Defect::new(field, len as u64, "text that is zero-padded"));
        }
        let text = core::str::from_utf8(text).map_err(|_| Defect::new(field, len as u64, "UTF-8"))?;
        ArrayString::from(text).map_err(|_| Defect::new(field, len as u64, "text that fits"))
    }

    fn hello(&mut self) -> Result<Hello, Defect> {
        let intent = self.take();
        let instance = [self.take(), self.take()];
        let (index, incarnation) = self.pair();
        let unused = instance[0] | instance[1] | u64::from(index) | u64::from(incarnation);
        if intent != 2 && unused != 0 {
            return Err(Defect::new("hello.member", unused, "0 unless rejoining"));
        }
        let intent = match intent {
            1 => Intent::Attach,
            2 if (index as usize) < MAX_CONSUMERS => Intent::Rejoin { instance, index, incarnation },
            2 => {
                return Err(Defect::bounded("hello.index", index.into(), "below", MAX_CONSUMERS as u64));
            }
            3 => Intent::Observe,
            _ => {
                return Err(Defect::new("hello.intent", intent, "1 (attach), 2 (rejoin) or 3 (observe)"));
            }
        };
        let version = self.take();
        if version >> 17 != 0 {
            return Err(Defect::new("hello.version", version, "reserved bits 0"));
        }
        let pid = self.take();
        let pid = u32::try_from(pid).map_err(|_| Defect::new("hello.pid", pid, "a 32-bit pid"))?;
        let name: RingName = self.text("hello.ring", 8)?;
        let ring = check_ring_name(&name).map_err(|_| Defect::new("hello.ring", name.len() as u64, "a ring name"))?;
        let label = self.text("hello.label", 8)?;
        Ok(Hello { intent, layout_major: version as u16, membarrier: version >> 16 & 1 == 1, pid, ring, label })
    }

    fn rest_is_zero(&mut self) -> Result<(), Defect> {
        match self.frame.iter().skip(self.at).find(|&&word| word != 0) {
            Some(&word) => Err(Defect::new("control.rest", word, "0 after the last field")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> [Control; 7] {
        let hello = Hello {
            intent: Intent::Rejoin { instance: [1, 2], index: 31, incarnation: 9 },
            layout_major: 1,
            membarrier: true,
            pid: 77,
            ring: check_ring_name("tokens").unwrap(),
            label: Label::from("python worker.py").unwrap(),
        };
        let welcome = Welcome { instance: [3, 4], epoch: 5, index: 6, incarnation: 7, lock_byte: 8, producer_byte: 9 };
        [
            Control::Hello(hello),
            Control::Hello(Hello { intent: Intent::Attach, ..hello }),
            Control::Welcome(welcome),
            Control::Refuse(RefuseCode::Full, ArrayString::from("8 of 8 places are taken").unwrap()),
            Control::Ready,
            Control::Admitted,
            Control::Leave,
        ]
    }

    #[test]
    fn packets_read_back_as_they_were_written() {
        for message in samples() {
            assert_eq!(Control::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn a_packet_with_any_word_set_to_all_ones_is_refused_or_reads_as_something() {
        for message in samples() {
            for word in 0..FRAME_WORDS {
                let mut frame = message.encode();
                frame[word] = u64::MAX;
                if let Ok(other) = Control::decode(&frame) {
                    assert_ne!(other, message);
                }
            }
        }
    }

    #[test]
    fn a_frame_lies_as_the_module_draws_it() {
        assert_eq!(FRAME_BYTES, 512);
        let [rejoin, attach, welcome, refuse, ..] = samples().map(|message| message.encode());
        assert_eq!(rejoin[..8], [FRAME_MAGIC, 1, 2, 1, 2, 31 | 9 << 32, 1 | 1 << 16, 77]);
        assert_eq!(rejoin[8..10], [pack(b"tokens"), 0]);
        assert_eq!(rejoin[16..18], [pack(b"python w"), pack(b"orker.py")]);
        assert_eq!(attach[2..6], [1, 0, 0, 0]);
        assert_eq!(welcome[..8], [FRAME_MAGIC, 2, 3, 4, 5, 6 | 7 << 32, 8, 9]);
        assert_eq!(refuse[..4], [FRAME_MAGIC, 3, 3, pack(b"8 of 8 p")]);
        let observe = Control::decode(&{
            let mut frame = attach;
            frame[2] = 3;
            frame[6] = 1;
            frame
        });
        let Ok(Control::Hello(hello)) = observe else { panic!("{observe:?}") };
        assert_eq!((hello.intent, hello.membarrier), (Intent::Observe, false));
    }

    #[test]
    fn the_longest_texts_fit() {
        let long = [b'x'; MAX_REASON];
        let text = ArrayString::from(core::str::from_utf8(&long).unwrap()).unwrap();
        let refuse = Control::Refuse(RefuseCode::Failed, text);
        assert_eq!(Control::decode(&refuse.encode()), Ok(refuse));
    }

    #[test]
    fn every_word_of_a_packet_that_lies_is_named() {
        let [rejoin, attach, welcome, refuse, ready, ..] = samples().map(|message| message.encode());
        let cases = [
            (rejoin, 0, 1, "control.magic", Some(FRAME_MAGIC)),
            (rejoin, 1, 7, "control.type", None),
            (attach, 2, 0, "hello.intent", None),
            (rejoin, 5, 32, "hello.index", Some(32)),
            (attach, 3, 1, "hello.member", None),
            (attach, 4, 1, "hello.member", None),
            (attach, 5, 1, "hello.member", None),
            (attach, 5, 1 << 32, "hello.member", None),
            (rejoin, 6, 1 << 17, "hello.version", None),
            (rejoin, 7, 1 << 32, "hello.pid", None),
            (rejoin, 8, 0, "hello.ring", None),
            (rejoin, 9, 1 << 8, "hello.ring", None),
            (rejoin, 16, 0xff, "hello.label", None),
            (rejoin, 24, 1, "control.rest", None),
            (welcome, 5, 32, "welcome.index", Some(32)),
            (welcome, 6, (1 << 32) + 1, "welcome.lock_byte", Some(1 << 32)),
            (welcome, 7, (1 << 32) + 1, "welcome.lock_byte", Some(1 << 32)),
            (refuse, 2, 7, "refuse.code", None),
            (refuse, 3, 0xff, "refuse.text", None),
            (ready, 63, 1, "control.rest", None),
        ];
        for (mut frame, word, value, field, bound) in cases {
            frame[word] = value;
            let defect = Control::decode(&frame).unwrap_err();
            assert_eq!((defect.field, defect.bound), (field, bound), "word {word} = {value:#x}");
        }
        // Two words that are equal, and must both be 0.
        let mut frame = attach;
        (frame[3], frame[4]) = (5, 5);
        assert_eq!(Control::decode(&frame).unwrap_err().field, "hello.member");
        (frame[3], frame[4], frame[5]) = (5, 0, 5);
        assert_eq!(Control::decode(&frame).unwrap_err().field, "hello.member");
        (frame[3], frame[4], frame[5]) = (0, 5, 5);
        assert_eq!(Control::decode(&frame).unwrap_err().field, "hello.member");
        frame[3..6].copy_from_slice(&[0, 0, 5 | 5 << 32]);
        assert_eq!(Control::decode(&frame).unwrap_err().field, "hello.member");
        let mut frame = welcome;
        (frame[6], frame[7]) = (1 << 32, 1 << 32);
        assert!(Control::decode(&frame).is_ok(), "the last byte of the lock file");
    }
}
