//! How much a request to infer has of each thing, counted on its bytes before they become structures: an entry of two bytes
//! becomes one of hundreds, and a body may have millions of them.

use crate::{
    backend::ModelInfo,
    http::{json::MAX_PARAMETERS, problem::Problem},
};

/// Tensors that are named or sent: more than a model can have.
const MAX_TENSORS: usize = 2 * forebay::MAX_FIELDS;
/// Dims of one of them.
const MAX_DIMS: usize = 2 * forebay::MAX_RANK;

/// Refuses a message with more entries than a request can mean. What is left takes memory in proportion to its bytes.
pub(super) fn check(message: &[u8], model: &ModelInfo) -> Result<(), Problem> {
    let (mut parameters, mut inputs, mut outputs, mut raw, mut items) = (0, 0, 0, 0, 0);
    let one_more = |of: &mut usize, most: usize, field: &str| {
        *of += 1;
        if *of > most {
            Err(Problem::field(field, format!("more than {most}, which no request needs")))
        } else {
            Ok(())
        }
    };
    // The numbers of fields are those of messages.rs.
    for field in Fields(message) {
        match field? {
            (4, _) => one_more(&mut parameters, MAX_PARAMETERS, "parameters")?,
            (5, Value::Bytes(tensor)) => {
                check_tensor(tensor, inputs, &mut items, model)?;
                one_more(&mut inputs, MAX_TENSORS, "inputs")?;
            }
            (6, _) => one_more(&mut outputs, MAX_TENSORS, "outputs")?,
            (7, _) => one_more(&mut raw, MAX_TENSORS, "raw_input_contents")?,
            _ => {}
        }
    }
    Ok(())
}

/// Looks into one of `inputs`, and counts its elements of type BYTES, each of which is an item.
fn check_tensor(tensor: &[u8], number: usize, items: &mut usize, model: &ModelInfo) -> Result<(), Problem> {
    let mut dims = 0;
    for field in Fields(tensor) {
        match field? {
            // Several dims in one field have an end each.
            (3, Value::Bytes(packed)) => dims += packed.iter().filter(|byte| **byte < 0x80).count(),
            (3, Value::Number) => dims += 1,
            (5, Value::Bytes(contents)) => {
                for field in Fields(contents) {
                    *items += usize::from(field?.0 == 8);
                    if *items > model.max_items {
                        let text = format!("more than {} items in one request (limits.items)", model.max_items);
                        return Err(Problem::too_large(text));
                    }
                }
            }
            _ => {}
        }
    }
    if dims > MAX_DIMS {
        let text = format!("{dims} dims; expected at most {MAX_DIMS}");
        return Err(Problem::field(format!("inputs[{number}].shape"), text));
    }
    Ok(())
}

/// The fields of a message, in their order: number and value.
///
/// What is no message is an error here and not left to who reads it afterwards: that one could understand a length that
/// leads out of its message in another way, and find more there than was counted.
struct Fields<'a>(&'a [u8]);

enum Value<'a> {
    Number,
    Bytes(&'a [u8]),
}

impl<'a> Fields<'a> {
    /// Up to ten bytes, seven bits in each.
    fn varint(&mut self) -> Option<u64> {
        let length = 1 + self.0.iter().take(10).position(|byte| *byte < 0x80)?;
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        Some(bytes.iter().rev().fold(0, |all, byte| all << 7 | u64::from(byte & 0x7f)))
    }

    fn bytes(&mut self, length: u64) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(bytes)
    }

    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => self.varint().map(|_| Value::Number)?,
            1 => self.bytes(8).map(|_| Value::Number)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.bytes(length)?)
            }
            5 => self.bytes(4).map(|_| Value::Number)?,
            // 3 and 4 are groups, which this protocol never had.
            _ => return None,
        };
        Some((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Problem>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            // There is nothing behind it that could be told.
            self.0 = &[];
        }
        Some(field.ok_or_else(|| Problem::malformed("the message is no ModelInferRequest")))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message as _;

    use super::{
        super::messages::{Choice, Contents, InferRequest, Parameter, Tensor, Wanted},
        *,
    };
    use crate::backend::Takes;

    fn model() -> ModelInfo {
        ModelInfo {
            name: "m".to_owned(),
            version: "1".to_owned(),
            takes: Takes::Texts,
            inputs: Vec::new(),
            outputs: Vec::new(),
            parameters: Vec::new(),
            generates: false,
            max_items: 100,
            max_tokens: None,
        }
    }

    fn check(message: &[u8]) -> Result<(), String> {
        super::check(message, &model()).map_err(|problem| problem.text())
    }

    /// With as many of everything as may be, and all kinds of fields.
    fn full() -> InferRequest {
        let numbers = Contents { ints: vec![-1, 300], floats: vec![0.5], doubles: vec![0.5], ..Contents::default() };
        let texts = Contents { bytes: vec![Bytes::from_static(b"\x2a\0"); 50], ..Contents::default() };
        let tensor = |contents| Tensor { shape: vec![i64::MAX; MAX_DIMS], contents, ..Tensor::default() };
        let mut inputs = vec![tensor(None); MAX_TENSORS - 3];
        inputs.extend([tensor(Some(texts.clone())), tensor(Some(numbers)), tensor(Some(texts))]);
        let parameter = |i: usize| (i.to_string(), Parameter { choice: Some(Choice::Double(0.5)) });
        InferRequest {
            model_name: "m".repeat(200),
            parameters: (0..MAX_PARAMETERS).map(parameter).collect(),
            inputs,
            outputs: vec![Wanted::default(); MAX_TENSORS],
            raw: vec![Bytes::new(); MAX_TENSORS],
            ..InferRequest::default()
        }
    }

    #[test]
    fn a_request_may_have_as_much_as_a_model_takes_and_no_more() {
        assert_eq!(check(&full().encode_to_vec()), Ok(()));
        assert_eq!(check(b""), Ok(()));
        let refused = |change: fn(&mut InferRequest)| {
            let mut message = full();
            change(&mut message);
            check(&message.encode_to_vec()).expect_err("one too many")
        };
        let said = refused(|message| message.inputs.push(Tensor::default()));
        assert_eq!(said, "inputs: more than 64, which no request needs");
        let said = refused(|message| message.outputs.push(Wanted::default()));
        assert_eq!(said, "outputs: more than 64, which no request needs");
        let said = refused(|message| message.raw.push(Bytes::new()));
        assert_eq!(said, "raw_input_contents: more than 64, which no request needs");
        let said = refused(|message| drop(message.parameters.insert("one".to_owned(), Parameter::default())));
        assert_eq!(said, "parameters: more than 64, which no request needs");
        let said = refused(|message| message.inputs[1].shape.push(-1));
        assert_eq!(said, "inputs[1].shape: 17 dims; expected at most 16");
        let one = Contents { bytes: vec![Bytes::new()], ..Contents::default() };
        let mut more = full();
        more.inputs[0].contents = Some(one);
        assert_eq!(check(&more.encode_to_vec()), Err("more than 100 items in one request (limits.items)".into()));
    }

    #[test]
    fn dims_that_come_one_by_one_are_counted_too() {
        let dims = [0x18, 0].repeat(MAX_DIMS + 1);
        let message = [&[0x2a, u8::try_from(dims.len()).expect("few")][..], &dims].concat();
        assert_eq!(InferRequest::decode(&message[..]).map(|m| m.inputs[0].shape.len()), Ok(MAX_DIMS + 1));
        assert_eq!(check(&message), Err("inputs[0].shape: 17 dims; expected at most 16".to_owned()));
    }

    #[test]
    fn fields_that_nobody_knows_are_passed_over() {
        // A varint, eight bytes, two bytes with their length, four bytes.
        let unknown = [0x78, 0xff, 1, 0x79, 1, 2, 3, 4, 5, 6, 7, 8, 0x7a, 2, 0x2a, 0, 0x7d, 1, 2, 3, 4];
        let message = [&unknown[..], &full().encode_to_vec(), &unknown].concat();
        assert!(InferRequest::decode(&message[..]).is_ok());
        assert_eq!(check(&message), Ok(()));
    }

    #[test]
    fn what_is_no_message_is_refused_wherever_it_is() {
        for bad in [
            &[0xff; 50][..],
            // A key without a value; a length beyond the end; a group.
            &[0x2a],
            &[0x2a, 5, 0],
            &[0x2b, 0x2c],
            &[0x7d, 1, 2],
            // Contents that lead out of their tensor, as far as other elements.
            &[0x2a, 2, 0x2a, 4, 0x42, 0, 0x42, 0],
            &[0x2a, 4, 0x2a, 2, 0x42, 7],
        ] {
            assert_eq!(check(bad), Err("the message is no ModelInferRequest".to_owned()), "{bad:?}");
        }
    }
}
