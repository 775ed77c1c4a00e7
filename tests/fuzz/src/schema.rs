//! Schemas, names and element types: what reads back is what was written, and what cannot be is refused.

use forebay_layout::{
    ANY, DType, check_field_name, check_ring_name,
    schema::{MAX_BYTES, Schema},
};

use crate::bytes::Bytes;

/// The target `schema`.
pub fn run(data: &[u8]) {
    let mut input = Bytes::new(data);
    if input.byte() & 1 == 0 {
        decode(input.rest());
    } else {
        build(input);
    }
}

/// Any bytes: refused, or a schema that encodes to exactly them.
fn decode(bytes: &[u8]) {
    let Ok(schema) = Schema::decode(bytes) else { return };
    assert_eq!(encode(&schema), bytes, "two encodings of one schema");
    look(&schema);
}

/// A schema made by the builder: refused with a reason, or one that survives the wire.
fn build(mut input: Bytes<'_>) {
    let name = text(&mut input);
    let mut builder = Schema::builder(&name, input.half(), input.half());
    while !input.is_empty() {
        let field = text(&mut input);
        let dtype = DType::ALL[input.below(DType::ALL.len())];
        let dims: Vec<u64> = (0..input.below(10))
            .map(|_| match input.byte() {
                255 => ANY,
                254 => input.word(),
                small => small.into(),
            })
            .collect();
        builder = builder.field(&field, dtype, &dims);
    }
    match builder.build() {
        Ok(schema) => {
            let bytes = encode(&schema);
            assert_eq!(Schema::decode(&bytes).as_ref(), Ok(&schema));
            look(&schema);
        }
        Err(why) => assert!(!why.to_string().is_empty()),
    }
}

fn encode(schema: &Schema) -> Vec<u8> {
    let mut out = [0; MAX_BYTES];
    let len = schema.encode(&mut out);
    out[..len].to_vec()
}

/// Whatever can be asked of a schema.
fn look(schema: &Schema) {
    assert!(!schema.to_string().is_empty());
    assert!(schema.mismatch(schema).is_none(), "a schema does not fit itself");
    assert!(check_ring_name(schema.name()).is_ok());
    let bounded = schema.fields().iter().all(|field| field.max_bytes().is_some());
    assert!(bounded || schema.max_bytes().is_none());
    for (i, field) in schema.fields().iter().enumerate() {
        assert!(check_field_name(&field.name).is_ok());
        assert_eq!(schema.index_of(&field.name), Some(i), "two fields of one name");
        assert_eq!(DType::from_code(field.dtype.code()), Some(field.dtype));
        assert_eq!(field.dtype.to_string().parse(), Ok(field.dtype));
        if let (Some(bytes), Some(all)) = (field.max_bytes(), schema.max_bytes()) {
            assert!(bytes <= all);
        }
    }
}

/// A text of up to 80 bytes; what is not UTF-8 is replaced.
fn text(input: &mut Bytes<'_>) -> String {
    let len = input.below(81);
    String::from_utf8_lossy(input.take(len)).into_owned()
}
