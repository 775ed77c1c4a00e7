//! Reading tar archives of samples, forwards, with a bound on memory.
//!
//! Written for the few things that shards hold: regular files with names of any length (ustar prefixes, GNU long names,
//! PAX paths). Everything else is passed over. A sample is a run of members of one key; the source can begin at any
//! header, which is what makes positions small.

use std::io::{self, BufReader, Read, Seek, SeekFrom};

const BLOCK: u64 = 512;
/// Most bytes of a long name or of a PAX header.
const MAX_NAME_BYTES: u64 = 1 << 16;
/// Most members of one sample: more are no sample.
const MAX_MEMBERS: usize = 1000;

const IMAGES: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
const LABELS: [&str; 3] = ["cls", "txt", "json"];

/// What is read of what stands beside an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Labels {
    /// The `.cls`, else the last of the others.
    All,
    /// The `.cls`, and of that at most so many bytes.
    Class(u64),
    Nothing,
}

impl Labels {
    /// Bytes to read of a member of this size; `None` if it is no label.
    fn bytes_of(self, ending: &str, size: u64) -> Option<u64> {
        match self {
            Self::All => LABELS.contains(&ending).then_some(size),
            Self::Class(most) => (ending == "cls").then_some(size.min(most)),
            Self::Nothing => None,
        }
    }
}

/// A shard, read from a header on.
#[derive(Debug)]
pub(super) struct Shard<R> {
    reader: BufReader<R>,
    /// Where the reader stands.
    at: u64,
    /// Where the next sample begins.
    next: u64,
    len: u64,
}

/// A sample of a shard.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) key: String,
    pub(super) image: Vec<u8>,
    pub(super) label: Option<(String, Vec<u8>)>,
}

/// A sample, or the key of one that cannot be read and why.
pub(super) type Outcome = Result<Found, (String, String)>;

struct Member {
    name: String,
    size: u64,
    /// Where its first header begins, that of a long name included.
    start: u64,
    regular: bool,
}

/// The key and the ending: the name up to, and behind, the first dot of its last part.
fn key_of(name: &str) -> (&str, String) {
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[last..].find('.') {
        Some(dot) => (&name[..last + dot], name[last + dot + 1..].to_ascii_lowercase()),
        None => (name, String::new()),
    }
}

fn damaged(at: u64, what: &str) -> String {
    format!("the shard is damaged at byte {at}: {what}; fetch it again")
}

impl<R: Read + Seek> Shard<R> {
    pub(super) fn at(mut reader: R, offset: u64) -> io::Result<Self> {
        let len = reader.seek(SeekFrom::End(0))?;
        let offset = offset.min(len);
        reader.seek(SeekFrom::Start(offset))?;
        Ok(Self { reader: BufReader::with_capacity(64 << 10, reader), at: offset, next: offset, len })
    }

    /// Where the next sample begins.
    pub(super) fn offset(&self) -> u64 {
        self.next
    }

    /// The next sample with an image in it; `None` at the end. An outer error means that nothing more can be found.
    pub(super) fn next_sample(&mut self, max_bytes: u64, labels: Labels) -> Result<Option<Outcome>, String> {
        loop {
            let Some(first) = self.member()? else { return Ok(None) };
            let key = key_of(&first.name).0.to_owned();
            let mut sample = Collect { image: None, label: None, wrong: None };
            let mut member = first;
            for count in 0.. {
                if count == MAX_MEMBERS {
                    return Err(damaged(member.start, &format!("more than {MAX_MEMBERS} members are called {key:?}")));
                }
                self.take(member, max_bytes, labels, &mut sample)?;
                self.next = self.at;
                match self.member() {
                    Ok(Some(next)) if next.regular && key_of(&next.name).0 == key => member = next,
                    // The next sample, the end, or an error: all three are found again when asked for.
                    _ => {
                        self.seek(self.next)?;
                        break;
                    }
                }
            }
            match sample {
                Collect { wrong: Some(reason), .. } => return Ok(Some(Err((key, reason)))),
                Collect { image: Some(image), label, .. } => return Ok(Some(Ok(Found { key, image, label }))),
                // Members without an image: an index, a licence.
                Collect { image: None, .. } => {}
            }
        }
    }

    /// Reads what is wanted of a member and passes over the rest.
    fn take(&mut self, member: Member, max_bytes: u64, labels: Labels, sample: &mut Collect) -> Result<(), String> {
        let end = self.at + member.size.next_multiple_of(BLOCK);
        let (_, ending) = key_of(&member.name);
        let image = IMAGES.contains(&ending.as_str());
        let wanted = if image { Some(member.size) } else { labels.bytes_of(&ending, member.size) };
        if let Some(wanted) = wanted.filter(|_| member.regular) {
            if wanted > max_bytes {
                let Member { name, size, .. } = member;
                sample.wrong = Some(format!(
                    "the member {name:?} has {size} bytes, at most {max_bytes} are allowed; raise max_bytes or leave it out"
                ));
            } else {
                let bytes = self.bytes(wanted)?;
                let doubled = if image {
                    sample.image.replace(bytes).is_some()
                } else {
                    // Of several labels the class counts, else the last one.
                    if sample.label.as_ref().is_none_or(|(before, _)| before != "cls") {
                        sample.label = Some((ending, bytes));
                    }
                    false
                };
                if doubled {
                    sample.wrong = Some("there are two images of this name; give them names of their own".into());
                }
            }
        }
        self.seek(end.min(self.len))
    }

    /// The next header of a file, its name put together; `None` at the end of the archive.
    fn member(&mut self) -> Result<Option<Member>, String> {
        let start = self.at;
        let mut long_name = None;
        let mut long_size = None;
        loop {
            // An archive ends with zeros, or just ends.
            let Some(header) = self.header()? else { return Ok(None) };
            let size = long_size.take().unwrap_or(header.size);
            let end = (self.at.checked_add(size)).filter(|&end| end <= self.len);
            let Some(end) = end else {
                let what = format!("{:?} is {size} bytes long, the shard ends before", header.name);
                return Err(damaged(self.at - BLOCK, &what));
            };
            match header.kind {
                b'L' => long_name = Some(self.text(header.size)?.trim_end_matches('\0').to_owned()),
                b'x' => {
                    let text = self.text(header.size)?;
                    long_name = pax(&text, "path").map(str::to_owned).or(long_name);
                    long_size = pax(&text, "size").and_then(|size| size.parse().ok());
                }
                kind => {
                    let name = long_name.take().unwrap_or(header.name);
                    return Ok(Some(Member { name, size, start, regular: kind == b'0' || kind == 0 }));
                }
            }
            self.seek(end.next_multiple_of(BLOCK).min(self.len))?;
        }
    }

    fn header(&mut self) -> Result<Option<Header>, String> {
        let at = self.at;
        match self.len.saturating_sub(at) {
            0 => return Ok(None),
            1..BLOCK => return Err(damaged(at, "it ends in the middle of a header")),
            _ => {}
        }
        let block: [u8; BLOCK as usize] =
            self.bytes(BLOCK)?.try_into().map_err(|_| damaged(at, "a header is too short"))?;
        if block.iter().all(|&byte| byte == 0) {
            // Asked again, it is the end again.
            self.seek(at)?;
            return Ok(None);
        }
        let sum = |range: std::ops::Range<usize>| block[range].iter().map(|&byte| u64::from(byte)).sum::<u64>();
        let expected = sum(0..148) + 8 * u64::from(b' ') + sum(156..512);
        if octal(&block[148..156]) != Some(expected) {
            return Err(damaged(at, "the checksum of a header does not match"));
        }
        let size = octal(&block[124..136]).ok_or_else(|| damaged(at, "a header has no size"))?;
        let text = |range: std::ops::Range<usize>| {
            let bytes = &block[range];
            let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
            String::from_utf8_lossy(&bytes[..end]).into_owned()
        };
        let mut name = text(0..100);
        let prefix = if &block[257..263] == b"ustar\0" { text(345..500) } else { String::new() };
        if !prefix.is_empty() {
            name = format!("{prefix}/{name}");
        }
        Ok(Some(Header { name, size, kind: block[156] }))
    }

    fn text(&mut self, size: u64) -> Result<String, String> {
        if size > MAX_NAME_BYTES {
            return Err(damaged(self.at, &format!("a name of {size} bytes")));
        }
        Ok(String::from_utf8_lossy(&self.bytes(size)?).into_owned())
    }

    fn bytes(&mut self, size: u64) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        let read = (&mut self.reader).take(size).read_to_end(&mut bytes);
        read.map_err(|error| format!("cannot read on at byte {}: {error}; repair the medium", self.at))?;
        self.at += bytes.len() as u64;
        if bytes.len() as u64 != size {
            return Err(damaged(self.at, "it ends here, in the middle of a member"));
        }
        Ok(bytes)
    }

    fn seek(&mut self, to: u64) -> Result<(), String> {
        // Relative, so that what is buffered stays so.
        let by = to as i64 - self.at as i64;
        self.reader
            .seek_relative(by)
            .map_err(|error| format!("cannot go on at byte {to}: {error}; repair the medium"))?;
        self.at = to;
        Ok(())
    }
}

struct Collect {
    image: Option<Vec<u8>>,
    label: Option<(String, Vec<u8>)>,
    wrong: Option<String>,
}

struct Header {
    name: String,
    size: u64,
    kind: u8,
}

/// A number in octal digits, ended by a space or a NUL; or in base 256, as GNU writes large ones.
fn octal(field: &[u8]) -> Option<u64> {
    if field.first()? & 0x80 != 0 {
        let (first, rest) = field.split_last_chunk::<8>()?;
        let plain =
            first.split_first().is_some_and(|(mark, zeros)| *mark == 0x80 && zeros.iter().all(|&byte| byte == 0));
        return plain.then(|| rest.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)));
    }
    let text = std::str::from_utf8(field).ok()?;
    u64::from_str_radix(text.trim_matches([' ', '\0']), 8).ok()
}

/// The value of a key in a PAX header, whose records are `length key=value\n`.
fn pax<'a>(records: &'a str, key: &str) -> Option<&'a str> {
    let mut rest = records;
    while let Some((length, _)) = rest.split_once(' ') {
        let length: usize = length.parse().ok()?;
        let record = rest.get(length.to_string().len() + 1..length)?;
        if let Some((found, value)) = record.split_once('=')
            && found == key
        {
            return Some(value.trim_end_matches('\n'));
        }
        rest = rest.get(length..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn member(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut block = [0u8; BLOCK as usize];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        block[156] = kind;
        block[257..263].copy_from_slice(b"ustar\0");
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
        block[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
        block[154] = 0;
        let mut all = block.to_vec();
        all.extend(content);
        all.resize(all.len().next_multiple_of(BLOCK as usize), 0);
        all
    }

    fn archive() -> Vec<u8> {
        let long = format!("{}/deep", "d".repeat(150));
        let record = format!(" path={long}.jpg\n");
        let pax = format!("{}{record}", record.len() + 3);
        assert_eq!(pax.len().to_string(), pax[..3]);
        let mut all = [
            member("folder/", b'5', b""),
            member("README", b'0', b"not a sample"),
            member("a/0001.jpg", b'0', b"first"),
            member("a/0001.cls", b'0', b"7"),
            member("a/0002.seg.png", b'0', b"mask"),
            member("a/0002.PNG", b'0', &[2; 600]),
            member("a/0003.json", 0, b"{}"),
            member("a/0003.webp", 0, b""),
            member("ignored", b'x', pax.as_bytes()),
            member("short.jpg", b'0', b"deep"),
        ]
        .concat();
        all.extend([0; 1024]);
        all
    }

    fn all(bytes: &[u8], offset: u64, max_bytes: u64) -> (Vec<(u64, Outcome)>, Result<(), String>) {
        let mut shard = Shard::at(Cursor::new(bytes), offset).unwrap();
        let mut samples = Vec::new();
        loop {
            match shard.next_sample(max_bytes, Labels::All) {
                Ok(Some(sample)) => samples.push((shard.offset(), sample)),
                Ok(None) => return (samples, Ok(())),
                Err(why) => return (samples, Err(why)),
            }
        }
    }

    #[test]
    fn members_of_one_key_are_one_sample() {
        let (samples, end) = all(&archive(), 0, 1000);
        end.unwrap();
        let found: Vec<&Found> = samples.iter().map(|(_, sample)| sample.as_ref().unwrap()).collect();
        let keys: Vec<&str> = found.iter().map(|found| &*found.key).collect();
        let deep = format!("{}/deep", "d".repeat(150));
        assert_eq!(keys, ["a/0001", "a/0002", "a/0003", &deep]);
        assert_eq!((&*found[0].image, &found[0].label), (&b"first"[..], &Some(("cls".into(), b"7".to_vec()))));
        assert_eq!((&*found[1].image, &found[1].label), (&[2; 600][..], &None));
        assert_eq!((&*found[2].image, &found[2].label), (&b""[..], &Some(("json".into(), b"{}".to_vec()))));
    }

    #[test]
    fn every_position_is_one_to_go_on_from() {
        let bytes = archive();
        let (samples, _) = all(&bytes, 0, 1000);
        for (done, &(offset, _)) in samples.iter().enumerate() {
            let (rest, end) = all(&bytes, offset, 1000);
            end.unwrap();
            assert_eq!(rest, samples[done + 1..], "after {done}");
        }
    }

    #[test]
    fn a_member_beyond_the_limit_is_an_error_of_its_sample() {
        let (samples, end) = all(&archive(), 0, 599);
        end.unwrap();
        assert_eq!(samples.len(), 4);
        let (key, reason) = samples[1].1.as_ref().unwrap_err();
        assert!(key == "a/0002" && reason.contains("600 bytes, at most 599"), "{key} {reason}");
        assert!(samples[2].1.is_ok());
    }

    /// Counts what is read of it.
    struct Counted<'a>(Cursor<&'a [u8]>, usize);

    impl Read for Counted<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let read = self.0.read(out)?;
            self.1 += read;
            Ok(read)
        }
    }

    impl Seek for Counted<'_> {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }

    #[test]
    fn a_label_that_nobody_asked_for_is_not_read() {
        let long = vec![b'7'; 1 << 20];
        let bytes = [
            member("a.cls", b'0', &long),
            member("a.jpg", b'0', b"1"),
            member("a.json", b'0', &long),
            member("b.jpg", b'0', b"2"),
        ];
        let bytes = bytes.concat();
        for (labels, found, most) in [
            (Labels::Nothing, None, 256 << 10),
            (Labels::Class(65), Some(("cls".to_owned(), long[..65].to_vec())), 256 << 10),
            (Labels::All, Some(("cls".to_owned(), long.clone())), 4 << 20),
        ] {
            let mut shard = Shard::at(Counted(Cursor::new(&bytes), 0), 0).unwrap();
            let first = shard.next_sample(2 << 20, labels).unwrap().unwrap().unwrap();
            assert_eq!((&*first.image, first.label), (&b"1"[..], found));
            let second = shard.next_sample(2 << 20, labels).unwrap().unwrap().unwrap();
            assert_eq!((&*second.key, &*second.image, second.label), ("b", &b"2"[..], None));
            assert!(shard.next_sample(2 << 20, labels).unwrap().is_none());
            let read = shard.reader.get_ref().1;
            assert!(read < most, "{labels:?}: {read} bytes were read");
        }
    }

    #[test]
    fn two_images_of_one_key_are_an_error() {
        let bytes = [member("a.jpg", b'0', b"1"), member("a.png", b'0', b"2")].concat();
        let (samples, _) = all(&bytes, 0, 99);
        assert!(samples.len() == 1 && samples[0].1.as_ref().unwrap_err().1.contains("two images"));
    }

    #[test]
    fn a_cut_shard_says_where() {
        let bytes = archive();
        for (blocks, whole, word) in [(12, 2, "middle of a header"), (10, 1, "a/0002.PNG\" is 600 bytes long")] {
            let (samples, end) = all(&bytes[..BLOCK as usize * blocks + 100], 0, 1000);
            assert_eq!(samples.len(), whole, "what stands before the cut is given out");
            let why = end.unwrap_err();
            assert!(why.contains("damaged at byte") && why.contains(word), "{why}");
        }
    }

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(octal(b"0000644\0"), Some(0o644));
        assert_eq!(octal(b"   644 \0"), Some(0o644));
        assert_eq!(octal(b"\x80\0\0\0\0\0\0\x02\0\0\0\x01"), Some(0x2_0000_0001));
        for odd in [&b"\xff\0\0\0\0\0\0\x02\0\0\0\x01"[..], b"\x80\0\0\0\0\0\0\x02", b"", b"999"] {
            assert_eq!(octal(odd), None);
        }
    }

    proptest! {
        #[test]
        fn any_archive_ends(at in 0usize..6000, value: u8, cut in 0usize..9000, offset in 0u64..9000) {
            let mut bytes = archive();
            let len = bytes.len();
            bytes[at % len] = value;
            bytes.truncate(cut.max(1));
            let (samples, _) = all(&bytes, offset, 1000);
            prop_assert!(samples.len() < 20);
        }
    }
}
