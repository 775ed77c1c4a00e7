//! The layout of a message in a slot: which tensors, in which order, where. A producer keeps the last one, because most
//! messages look like the one before.

use arrayvec::ArrayVec;
use forebay_layout::{
    ALIGN, DType, FieldName, MAX_FIELDS, MAX_RANK, check_field_name,
    descriptor::TensorMeta,
    entry::EntryTensor,
    geometry::{Geometry, Plan},
    round_up,
    schema::Schema,
};

use super::FieldSpec;
use crate::error::LoanError;

/// The layout of one message in a slot.
#[derive(Debug, Clone, Default)]
pub(super) struct Outline {
    pub(super) fields: Vec<TensorMeta>,
    /// Schemaless rings only.
    pub(super) names: Vec<FieldName>,
    pub(super) payload_bytes: u64,
    /// The smallest size class that it fits in.
    pub(super) class: usize,
    /// Whether its only tensor is so small that its bytes are sent ahead.
    pub(super) inline: bool,
    /// Its number among the layouts of this producer; 0 if it has none.
    pub(super) number: u64,
    /// Whether the ring's consumers may write.
    writable: bool,
    /// What was asked for, in that order; nothing if the last attempt failed.
    asked: Vec<Asked>,
}

#[derive(Debug, Clone)]
struct Asked {
    name: FieldName,
    dtype: DType,
    shape: ArrayVec<u64, MAX_RANK>,
}

impl Outline {
    /// Whether this is the layout for these tensors.
    pub(super) fn answers(&self, specs: &[FieldSpec<'_>]) -> bool {
        self.number != 0
            && self.asked.len() == specs.len()
            && self.asked.iter().zip(specs).all(|(asked, spec)| {
                asked.dtype == spec.dtype && asked.shape.as_slice() == spec.shape && asked.name.as_str() == spec.name
            })
    }

    /// Becomes the layout `number`: the tensors one after the other, each 64-byte aligned, in the schema's order.
    ///
    /// # Errors
    /// They do not fit the schema, the rules for names, or any slot. It is no layout then.
    pub(super) fn lay_out(
        &mut self,
        ring: &str,
        schema: Option<&Schema>,
        (geometry, plan): (&Geometry, &Plan),
        specs: &[FieldSpec<'_>],
        number: u64,
    ) -> Result<(), LoanError> {
        (self.number, self.payload_bytes) = (0, 0);
        self.fields.clear();
        self.names.clear();
        self.asked.clear();
        match schema {
            Some(schema) => self.by_schema(schema, specs),
            None => self.by_specs(specs),
        }
        .map_err(|what| LoanError::Fields { ring: ring.to_owned(), what })?;
        let class = plan.classes.iter().position(|class| class.slot_bytes >= self.payload_bytes);
        self.class = class.ok_or_else(|| LoanError::TooLarge {
            ring: ring.to_owned(),
            needed: self.payload_bytes,
            largest: plan.largest_slot(),
        })?;
        self.writable = geometry.writable;
        self.look();
        for spec in specs {
            // Both were checked above: a name of the schema or a legal one, a shape that a tensor has.
            let (Ok(name), Ok(shape)) = (FieldName::from(spec.name), ArrayVec::try_from(spec.shape)) else {
                self.asked.clear();
                return Ok(());
            };
            self.asked.push(Asked { name, dtype: spec.dtype, shape });
        }
        self.number = number;
        Ok(())
    }

    fn by_schema(&mut self, schema: &Schema, specs: &[FieldSpec<'_>]) -> Result<(), String> {
        if let Some(extra) = specs.iter().find(|spec| schema.index_of(spec.name).is_none()) {
            return Err(format!("no field {:?} in schema {schema}; leave it out", extra.name));
        }
        for field in schema.fields() {
            let name = field.name.as_str();
            let mut found = specs.iter().filter(|spec| spec.name == name);
            let (Some(spec), None) = (found.next(), found.next()) else {
                return Err(format!("field {name:?} of schema {schema} must be given once"));
            };
            if spec.dtype != field.dtype {
                return Err(format!(
                    "field {name:?} is {}, the schema says {}; convert it first",
                    spec.dtype, field.dtype
                ));
            }
            if spec.shape.len() != field.max_dims().len() {
                return Err(format!(
                    "field {name:?} has shape {:?} of rank {}, the schema says {field}",
                    spec.shape,
                    spec.shape.len()
                ));
            }
            if spec.shape.iter().zip(field.max_dims()).any(|(dim, most)| dim > most) {
                return Err(format!("field {name:?} has shape {:?}, the schema allows at most {field}", spec.shape));
            }
            self.push(spec)?;
        }
        Ok(())
    }

    fn by_specs(&mut self, specs: &[FieldSpec<'_>]) -> Result<(), String> {
        if specs.len() > MAX_FIELDS {
            return Err(format!("{} fields, at most {MAX_FIELDS} are possible; send several messages", specs.len()));
        }
        for (i, spec) in specs.iter().enumerate() {
            let name = check_field_name(spec.name).map_err(|e| format!("field {:?}: {e}", spec.name))?;
            if specs[..i].iter().any(|other| other.name == spec.name) {
                return Err(format!("field {:?} is given twice", spec.name));
            }
            self.names.push(name);
            self.push(spec)?;
        }
        Ok(())
    }

    fn push(&mut self, spec: &FieldSpec<'_>) -> Result<(), String> {
        let too_large = || {
            format!(
                "field {:?} of shape {:?} has more than 8 dims or more bytes than there can be",
                spec.name, spec.shape
            )
        };
        let meta = TensorMeta::new(spec.dtype, spec.shape, self.payload_bytes).ok_or_else(too_large)?;
        let end = self.payload_bytes.checked_add(meta.nbytes).and_then(|end| round_up(end, ALIGN));
        self.payload_bytes = end.ok_or_else(too_large)?;
        self.fields.push(meta);
        Ok(())
    }

    /// The place of the tensor with this name.
    pub(super) fn find(&self, schema: Option<&Schema>, name: &str) -> Option<usize> {
        match schema {
            Some(schema) => schema.index_of(name),
            None => self.names.iter().position(|own| own.as_str() == name),
        }
    }

    /// Looks whether its bytes can be sent ahead. On a writable ring they could differ from those in the slot.
    fn look(&mut self) {
        let small = matches!(self.fields.as_slice(), [only] if EntryTensor::has_room(only));
        self.inline = small && !self.writable;
    }

    /// Lowers the dims of a tensor after the fact: a batch that turned out shorter. False if there is no such tensor, or
    /// it would not be smaller and of the same rank.
    pub(super) fn shrink(&mut self, index: usize, shape: &[u64]) -> bool {
        let Some(meta) = self.fields.get_mut(index) else { return false };
        match TensorMeta::new(meta.dtype, shape, meta.offset) {
            Some(new) if new.nbytes <= meta.nbytes && new.rank() == meta.rank() => {
                *meta = new;
                self.number = 0;
                self.look();
                true
            }
            _ => false,
        }
    }
}
