use bytes::Bytes;
use forebay::service::{Client, DetachedRequest, Item};
use serde_json::json;

use super::*;
use crate::backend::{NamedTensor, TextItem};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data");
const IMAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../forebay-ingest/tests/data/images");

fn intake(model: &str) -> Result<Intake, IntakeError> {
    let text = format!("{model}\n[worker]\ncommand = [\"true\"]\n");
    Intake::open(&toml::from_str(&text).unwrap())
}

fn text_model(more: &str) -> String {
    format!("[model]\nname = \"m\"\n[model.input]\ntype = \"text\"\ntokenizer = \"{DATA}/tokenizer.json\"\n{more}")
}

fn texts(texts: &[&str]) -> Input {
    Input::Texts(texts.iter().map(|&text| TextItem { text: text.to_owned(), pair: None }).collect())
}

fn none() -> Map<String, Value> {
    Map::new()
}

/// A batch of these rows, as a worker would see it: the bytes of each field.
fn batch(intake: &Intake, rows: &[RowOf<'_>], width: usize) -> Vec<(Vec<u64>, Vec<u8>)> {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::options("intake").dir(dir.path().join("rings")).schema(intake.schema().clone());
    let mut client = client.slots(2).slot_bytes(intake.slot_bytes()).create().unwrap();
    let fields = intake.fields(rows, width);
    let specs: Vec<_> = fields.iter().map(Field::spec).collect();
    let items: Vec<_> = (1..=rows.len() as u64).map(Item::new).collect();
    let mut loan: DetachedRequest = client.request(&specs, &items).unwrap().detach();
    intake.write(rows, &mut loan).unwrap();
    let shapes: Vec<Vec<u64>> = loan.fields().iter().map(|meta| meta.shape().to_vec()).collect();
    let fields = shapes.into_iter().enumerate().take(specs.len());
    fields.map(|(index, shape)| (shape, loan.bytes_mut(index).unwrap().to_vec())).collect()
}

fn numbers(bytes: &[u8]) -> Vec<i64> {
    bytes.chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[test]
fn rows_of_several_calls_share_a_padded_batch() {
    let intake = intake(&text_model("token_type_ids = true\npad_to_multiple_of = 4")).unwrap();
    let first = intake.prepare(texts(&["Let there be light", "And"]), &none()).unwrap();
    let second = intake.prepare(texts(&["heaven"]), &none()).unwrap();
    let sizes: Vec<usize> = first.items.iter().chain(&second.items).map(|item| item.as_ref().unwrap().tokens).collect();
    assert_eq!(sizes, [6, 3, 3]);
    let fields = batch(&intake, &[(&second, 0), (&first, 0)], 8);
    assert!(fields.iter().all(|(shape, _)| *shape == [2, 8]) && fields.len() == 3);
    assert_eq!(numbers(&fields[0].1)[..4], [101, 6014, 102, 0]);
    assert_eq!(numbers(&fields[0].1)[8..10], [101, 2292]);
    assert_eq!(numbers(&fields[1].1), [1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0]);
    assert!(numbers(&fields[2].1).iter().all(|&id| id == 0));
}

#[test]
fn long_texts_are_cut_or_refused_one_by_one() {
    let long = "light ".repeat(50);
    let cut = intake(&text_model("max_tokens = 8")).unwrap();
    assert_eq!(cut.prepare(texts(&[&long]), &none()).unwrap().items[0].as_ref().unwrap().tokens, 8);
    let refuse = intake(&text_model("max_tokens = 8\ntruncate = false")).unwrap();
    let items = refuse.prepare(texts(&["light", &long, ""]), &none()).unwrap().items;
    assert_eq!(items[0].as_ref().unwrap().tokens, 3);
    let error = items[1].as_ref().unwrap_err();
    assert!(error.kind == ItemErrorKind::Invalid && error.message.contains("more than 8 tokens"), "{error:?}");
    assert_eq!(items[2].as_ref().unwrap().tokens, 2);
    assert_eq!(refuse.max_tokens(), Some(8));
    assert!(intake(&text_model("max_tokens = 1")).unwrap_err().to_string().starts_with("model.input.max_tokens"));
}

#[test]
fn texts_without_any_token_still_have_a_width() {
    let intake = intake(&text_model("special_tokens = false")).unwrap();
    let empty = intake.prepare(texts(&[""]), &none()).unwrap();
    let fields = batch(&intake, &[(&empty, 0)], 0);
    assert_eq!((fields[1].0.clone(), numbers(&fields[1].1)), (vec![1, 1], vec![0]));
}

#[test]
fn generating_models_are_padded_on_the_left() {
    let intake = intake(&text_model("").replace("name = \"m\"", "name = \"m\"\ngenerate = true")).unwrap();
    let call = intake.prepare(texts(&["heaven"]), &none()).unwrap();
    assert_eq!(numbers(&batch(&intake, &[(&call, 0)], 5)[0].1), [0, 0, 101, 6014, 102]);
}

#[test]
fn tokenize_tells_tokens_and_their_places() {
    let intake = intake(&text_model("max_tokens = 4")).unwrap();
    let given = ["unbelievable heavens".to_owned()];
    let bare = &intake.tokenize(&given, false).unwrap().unwrap()[0];
    assert_eq!((bare.tokens.join(" "), bare.ids.len()), ("unbelievable heavens".to_owned(), 2));
    assert_eq!(bare.offsets, [[0, 12], [13, 20]]);
    assert_eq!(intake.tokenize(&given, true).unwrap().unwrap()[0].tokens[0], "[CLS]");
}

fn image_model(processor: &str, more: &str) -> (tempfile::TempDir, Intake) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("preprocessor_config.json");
    std::fs::write(&path, processor).unwrap();
    let input = format!("type = \"image\"\nprocessor = \"{}\"\n{more}", path.display());
    let intake = intake(&format!("[model]\nname = \"m\"\n[model.input]\n{input}")).unwrap();
    (folder, intake)
}

/// The header of a PNG of this size, with nothing behind it.
fn png_header(width: u32, height: u32) -> Bytes {
    let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
    bytes.extend(width.to_be_bytes());
    bytes.extend(height.to_be_bytes());
    bytes.extend([8, 2, 0, 0, 0]);
    let crc = bytes[12..].iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    });
    bytes.extend((!crc).to_be_bytes());
    // The decoder reads on to the first data.
    bytes.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
    bytes.into()
}

#[test]
fn bad_images_fail_alone() {
    let (_folder, intake) = image_model(r#"{"image_processor_type": "CLIPImageProcessor"}"#, "");
    let good = Bytes::from(std::fs::read(format!("{IMAGES}/gradient.png")).unwrap());
    let images = vec![good.clone(), Bytes::from_static(b"no image"), png_header(20_000, 20_000), Bytes::new(), good];
    let call = intake.prepare(Input::Images(images), &none()).unwrap();
    let wrong: Vec<&str> =
        call.items.iter().map(|item| item.as_ref().map_or_else(|e| e.message.as_str(), |_| "")).collect();
    assert!(wrong[0].is_empty() && wrong[4].is_empty(), "{wrong:?}");
    assert!(wrong[1].contains("not an image") && wrong[2].contains("20000 × 20000") && wrong[3].contains("0 bytes"));
    let fields = batch(&intake, &[(&call, 4), (&call, 0)], 0);
    assert_eq!(fields[0].0, [2, 3, 224, 224]);
    let (one, other) = fields[0].1.split_at(fields[0].1.len() / 2);
    assert!(one == other && one.iter().any(|&byte| byte != 0));
}

#[test]
fn images_beyond_a_batch_are_refused_before_they_are_decoded() {
    let processor = r#"{"image_processor_type": "ViTImageProcessor", "do_resize": false}"#;
    let (_folder, intake) = image_model(processor, "");
    let call = intake.prepare(Input::Images(vec![png_header(7000, 7000)]), &none()).unwrap();
    let error = call.items[0].as_ref().unwrap_err();
    assert!(error.message.contains("7000 × 7000") && error.message.contains("room for"), "{error:?}");
}

const TENSORS: &str = r#"
[model]
name = "m"
[model.input]
type = "tensors"
tensors = [
    { name = "x", dtype = "float32", shape = [-1, 2], max_dims = [3] },
    { name = "n", dtype = "int64" },
]
"#;

fn tensor(name: &str, dtype: DType, shape: &[u64], bytes: usize) -> NamedTensor {
    let bytes = (0..bytes).map(|i| i as u8).collect::<Vec<_>>().into();
    NamedTensor { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes }
}

#[test]
fn tensors_are_checked_and_passed_on() {
    let intake = intake(TENSORS).unwrap();
    let call = |rows: u64, dim: u64| {
        let x = tensor("x", DType::F32, &[rows, dim, 2], (rows * dim * 8) as usize);
        intake.prepare(Input::Tensors(vec![tensor("n", DType::I64, &[rows], rows as usize * 8), x]), &none()).unwrap()
    };
    let (first, second, other) = (call(2, 3), call(1, 3), call(1, 2));
    let group = |call: &Prepared| call.items[0].as_ref().unwrap().group;
    assert!(group(&first) == group(&second) && group(&first) != group(&other), "dims that vary make groups");
    assert_eq!(first.items[1].as_ref().unwrap().bytes, 24 + 8);
    let fields = batch(&intake, &[(&first, 1), (&second, 0)], 0);
    assert_eq!((&fields[0].0[..], &fields[1].0[..]), (&[2, 3, 2][..], &[2][..]));
    assert_eq!((fields[0].1[0], fields[0].1[24], fields[1].1[0]), (24, 0, 8));
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_field() {
    let intake = intake(TENSORS).unwrap();
    let n = || tensor("n", DType::I64, &[1], 8);
    let x = |shape: &[u64], bytes| tensor("x", DType::F32, shape, bytes);
    let cases = [
        (vec![x(&[1, 3, 2], 24)], "inputs", "\"n\" is missing"),
        (vec![n(), x(&[1, 4, 2], 32)], "inputs[1].shape", "[items, any, 2], at most [3, 2]"),
        (vec![n(), x(&[1, 3], 12)], "inputs[1].shape", "[1, 3], expected"),
        (vec![n(), x(&[2, 3, 2], 48)], "inputs[1].shape", "the first one has 1 items"),
        (vec![n(), x(&[1, 3, 2], 23)], "inputs[1].data", "23 bytes"),
        (vec![n(), tensor("x", DType::F64, &[1, 3, 2], 48)], "inputs[1].datatype", "float64, expected float32"),
        (vec![n(), tensor("y", DType::F64, &[1], 8)], "inputs[1].name", "no input \"y\"; there are x, n"),
        (vec![n(), n()], "inputs[1].name", "twice"),
        (vec![tensor("n", DType::I64, &[0], 0), x(&[0, 3, 2], 0)], "inputs", "no items"),
        (vec![tensor("n", DType::I64, &[u64::MAX], 8), x(&[u64::MAX, 3, 2], 24)], "inputs[0].data", "8 bytes"),
        (vec![], "inputs", "missing"),
    ];
    for (given, field, text) in cases {
        match intake.prepare(Input::Tensors(given), &none()) {
            Err(Refusal::Invalid { field: found, message, .. }) => {
                assert!(found == field && message.contains(text), "{found}: {message}");
            }
            found => panic!("{field}: {found:?}"),
        }
    }
    assert!(matches!(intake.prepare(texts(&["a"]), &none()), Err(Refusal::Unsupported(_))));
}

#[test]
fn a_tensor_without_elements_cannot_stand_for_many_items() {
    let empty =
        TENSORS.replace("[-1, 2], max_dims = [3]", "[0]").replace("    { name = \"n\", dtype = \"int64\" },\n", "");
    let intake = intake(&empty).unwrap();
    let many = Input::Tensors(vec![tensor("x", DType::F32, &[1 << 60, 0], 0)]);
    assert!(matches!(intake.prepare(many, &none()), Err(Refusal::Invalid { .. })));
}

#[test]
fn rows_of_a_table_fail_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("schema.json");
    let schema = r#"{"tensors": [{"name": "x", "columns": [
        {"type": "numeric", "path": "a"}, {"type": "one_hot", "path": "c", "vocabulary": ["yes", "no"]}]}]}"#;
    std::fs::write(&path, schema).unwrap();
    let model = format!("[model]\nname = \"m\"\n[model.input]\ntype = \"table\"\nschema = \"{}\"", path.display());
    let intake = intake(&model).unwrap();
    let rows = [&b"{\"a\": 7,\n \"c\": \"no\"}"[..], b"{\"a\": \"x\"}", b"{", b"{\"a\": 1, \"c\": \"yes\"}"];
    let call = intake.prepare(Input::Rows(rows.iter().map(|row| Bytes::from_static(row)).collect()), &none()).unwrap();
    assert!(call.items[0].is_ok() && call.items[3].is_ok());
    assert!(call.items[1].as_ref().unwrap_err().message.contains("a is"));
    assert!(call.items[2].as_ref().unwrap_err().message.contains("not JSON"));
    let fields = batch(&intake, &[(&call, 3), (&call, 0)], 0);
    let values: Vec<f32> =
        fields[0].1.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
    assert_eq!((&fields[0].0[..], &values[..]), (&[2, 3][..], &[1.0, 1.0, 0.0, 7.0, 0.0, 1.0][..]));
}

#[test]
fn parameters_become_a_tensor_each() {
    let more = r#"
        [[model.parameters]]
        name = "max_new_tokens"
        dtype = "int32"
        default = 20
        min = 1
        max = 100
        [[model.parameters]]
        name = "seed"
        dtype = "uint64"
        default = 0
        [[model.parameters]]
        name = "greedy"
        dtype = "bool"
        default = 1
        [[model.parameters]]
        name = "bias"
        dtype = "float32"
        default = -3.4e38
    "#;
    let intake = intake(&text_model(more)).unwrap();
    let given = json!({ "max_new_tokens": 5, "seed": u64::MAX, "greedy": false });
    let set = intake.prepare(texts(&["heaven"]), given.as_object().unwrap()).unwrap();
    let unset = intake.prepare(texts(&["heaven"]), &none()).unwrap();
    let fields = batch(&intake, &[(&set, 0), (&unset, 0)], 3);
    assert!(fields[2..].iter().all(|(shape, _)| *shape == [2]));
    assert_eq!(fields[2].1, [5, 0, 0, 0, 20, 0, 0, 0]);
    assert_eq!(fields[3].1, [&[255; 8][..], &[0; 8]].concat());
    assert_eq!(fields[4].1, [0, 1]);
    assert_eq!(fields[5].1, [(-3.4e38f32).to_le_bytes(); 2].concat());
    let cases = [
        (json!({ "max_new_tokens": 0 }), "max_new_tokens", "at least 1 and at most 100"),
        (json!({ "max_new_tokens": 1.5 }), "max_new_tokens", "a whole number"),
        (json!({ "max_new_tokens": "5" }), "max_new_tokens", "a text, expected a number"),
        (json!({ "seed": -1 }), "seed", "whole number that uint64 has"),
        (json!({ "bias": 1e300 }), "bias", "1e+300, expected a number that float32 has"),
        (json!({ "bias": -1e39 }), "bias", "-1e+39, expected a number that float32 has"),
        (json!({ "temperature": 1 }), "temperature", "expected: max_new_tokens, seed, greedy, bias"),
    ];
    for (given, field, text) in cases {
        match intake.prepare(texts(&["a"]), given.as_object().unwrap()) {
            Err(Refusal::Invalid { field: found, message, .. }) => {
                assert!(found == format!("parameters.{field}") && message.contains(text), "{found}: {message}");
            }
            found => panic!("{field}: {found:?}"),
        }
    }
    let bad = text_model("[[model.parameters]]\nname = \"n\"\ndtype = \"uint8\"\ndefault = 300");
    assert!(super::tests::intake(&bad).unwrap_err().to_string().starts_with("model.parameters[0].default"));
}

#[test]
fn slots_have_room_for_the_largest_batch() {
    let intake = intake(&text_model("max_tokens = 100")).unwrap();
    assert!(intake.slot_bytes() >= 16_384 * 16 && intake.slot_bytes() < 16_384 * 16 + 1024);
    let small = format!("{}\n[batch]\nmax_items = 2\n", TENSORS);
    assert_eq!(super::tests::intake(&small).unwrap().max_bytes(), 2 * (24 + 8));
    let text = format!("{TENSORS}\n[worker]\ncommand = [\"true\"]\nslot_bytes = 100\n");
    let error = Intake::open(&toml::from_str(&text).unwrap()).unwrap_err().to_string();
    assert!(error.starts_with("worker.slot_bytes: 100 bytes, one item alone needs"), "{error}");
}
