//! Metadata of a GGUF file: keys and typed values.

use std::fmt;

/// One metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Type 0.
    U8(u8),
    /// Type 1.
    I8(i8),
    /// Type 2.
    U16(u16),
    /// Type 3.
    I16(i16),
    /// Type 4.
    U32(u32),
    /// Type 5.
    I32(i32),
    /// Type 6.
    F32(f32),
    /// Type 7.
    Bool(bool),
    /// Type 8.
    String(String),
    /// Type 9.
    Array(Array),
    /// Type 10.
    U64(u64),
    /// Type 11.
    I64(i64),
    /// Type 12.
    F64(f64),
}

/// A metadata array; all elements have one type.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// Type 0.
    U8(Vec<u8>),
    /// Type 1.
    I8(Vec<i8>),
    /// Type 2.
    U16(Vec<u16>),
    /// Type 3.
    I16(Vec<i16>),
    /// Type 4.
    U32(Vec<u32>),
    /// Type 5.
    I32(Vec<i32>),
    /// Type 6.
    F32(Vec<f32>),
    /// Type 7.
    Bool(Vec<bool>),
    /// Type 8.
    String(StringArray),
    /// Type 9: arrays of arrays, whose types may differ.
    Array(Vec<Array>),
    /// Type 10.
    U64(Vec<u64>),
    /// Type 11.
    I64(Vec<i64>),
    /// Type 12.
    F64(Vec<f64>),
}

/// Many strings in one allocation: a vocabulary of 262,144 tokens takes 3 MB instead of 12.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct StringArray {
    text: String,
    /// End of each string in `text`.
    ends: Vec<u32>,
}

impl StringArray {
    /// An empty array with room for that many strings.
    pub(crate) fn with_capacity(strings: usize) -> StringArray {
        StringArray { text: String::new(), ends: Vec::with_capacity(strings) }
    }

    /// Appends a string; false, and nothing is appended, if the text would pass 4 GiB.
    #[must_use]
    pub fn push(&mut self, string: &str) -> bool {
        let Ok(end) = u32::try_from(self.text.len() + string.len()) else { return false };
        self.text.push_str(string);
        self.ends.push(end);
        true
    }

    /// Gives unused room back.
    pub(crate) fn shrink(&mut self) {
        self.text.shrink_to_fit();
        self.ends.shrink_to_fit();
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The string at `index`, if there is one.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)? as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        self.text.get(start..end)
    }

    /// All strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + '_ {
        (0..self.len()).map(|index| self.get(index).unwrap_or_default())
    }
}

impl fmt::Debug for StringArray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().take(8)).finish()?;
        write!(f, " ({} strings)", self.len())
    }
}

impl<S: AsRef<str>> FromIterator<S> for StringArray {
    /// # Panics
    /// If the strings together pass 4 GiB.
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> StringArray {
        let mut array = StringArray::default();
        for string in strings {
            assert!(array.push(string.as_ref()), "a string array holds at most 4 GiB");
        }
        array
    }
}

impl Array {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(values) => values.len(),
            Array::I8(values) => values.len(),
            Array::U16(values) => values.len(),
            Array::I16(values) => values.len(),
            Array::U32(values) => values.len(),
            Array::I32(values) => values.len(),
            Array::F32(values) => values.len(),
            Array::Bool(values) => values.len(),
            Array::String(values) => values.len(),
            Array::Array(values) => values.len(),
            Array::U64(values) => values.len(),
            Array::I64(values) => values.len(),
            Array::F64(values) => values.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements, if they are strings.
    pub fn strings(&self) -> Option<&StringArray> {
        match self {
            Array::String(strings) => Some(strings),
            _ => None,
        }
    }

    /// The elements, if they are 32-bit floats.
    pub fn f32s(&self) -> Option<&[f32]> {
        match self {
            Array::F32(values) => Some(values),
            _ => None,
        }
    }

    /// The elements, if they are signed 32-bit integers.
    pub fn i32s(&self) -> Option<&[i32]> {
        match self {
            Array::I32(values) => Some(values),
            _ => None,
        }
    }

    /// The elements, if they are booleans.
    pub fn bools(&self) -> Option<&[bool]> {
        match self {
            Array::Bool(values) => Some(values),
            _ => None,
        }
    }

    /// The elements as unsigned integers, if they are integers of any type and none is negative.
    pub fn to_u64s(&self) -> Option<Vec<u64>> {
        match self {
            Array::U8(values) => Some(values.iter().map(|&value| value.into()).collect()),
            Array::U16(values) => Some(values.iter().map(|&value| value.into()).collect()),
            Array::U32(values) => Some(values.iter().map(|&value| value.into()).collect()),
            Array::U64(values) => Some(values.clone()),
            Array::I8(values) => values.iter().map(|&value| value.try_into().ok()).collect(),
            Array::I16(values) => values.iter().map(|&value| value.try_into().ok()).collect(),
            Array::I32(values) => values.iter().map(|&value| value.try_into().ok()).collect(),
            Array::I64(values) => values.iter().map(|&value| value.try_into().ok()).collect(),
            Array::F32(_) | Array::F64(_) | Array::Bool(_) | Array::String(_) | Array::Array(_) => None,
        }
    }
}

impl Value {
    /// The string, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(string) => Some(string),
            _ => None,
        }
    }

    /// The boolean, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The array, if it is one.
    pub fn as_array(&self) -> Option<&Array> {
        match self {
            Value::Array(array) => Some(array),
            _ => None,
        }
    }

    /// The number, if it is an integer of any type and not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U8(value) => Some(value.into()),
            Value::U16(value) => Some(value.into()),
            Value::U32(value) => Some(value.into()),
            Value::U64(value) => Some(value),
            Value::I8(value) => value.try_into().ok(),
            Value::I16(value) => value.try_into().ok(),
            Value::I32(value) => value.try_into().ok(),
            Value::I64(value) => value.try_into().ok(),
            Value::F32(_) | Value::F64(_) | Value::Bool(_) | Value::String(_) | Value::Array(_) => None,
        }
    }

    /// The number, if it is a float of either size (not an integer).
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(value) => Some(value.into()),
            Value::F64(value) => Some(value),
            _ => None,
        }
    }

    /// The type's name in the specification, for messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::U8(_) => "uint8",
            Value::I8(_) => "int8",
            Value::U16(_) => "uint16",
            Value::I16(_) => "int16",
            Value::U32(_) => "uint32",
            Value::I32(_) => "int32",
            Value::F32(_) => "float32",
            Value::Bool(_) => "bool",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::U64(_) => "uint64",
            Value::I64(_) => "int64",
            Value::F64(_) => "float64",
        }
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Value {
        Value::String(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Value {
        Value::String(value)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Value {
        Value::U32(value)
    }
}

impl From<f32> for Value {
    fn from(value: f32) -> Value {
        Value::F32(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Value {
        Value::Bool(value)
    }
}

impl From<Array> for Value {
    fn from(value: Array) -> Value {
        Value::Array(value)
    }
}

/// Keys and values in the order of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    /// Indices into `entries`, sorted by key.
    by_key: Vec<u32>,
}

impl Metadata {
    /// No entries.
    pub fn new() -> Metadata {
        Metadata::default()
    }

    /// The value of a key, if it is there.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let place = self.find(key).ok()?;
        Some(&self.entries[self.by_key[place] as usize].1)
    }

    /// Sets a key, at the end if it is new, and gives back what it had before.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<Value>) -> Option<Value> {
        let (key, value) = (key.into(), value.into());
        match self.find(&key) {
            Ok(place) => Some(std::mem::replace(&mut self.entries[self.by_key[place] as usize].1, value)),
            Err(place) => {
                self.by_key.insert(place, self.entries.len() as u32);
                self.entries.push((key, value));
                None
            }
        }
    }

    /// Removes a key and gives back its value.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let place = self.find(key).ok()?;
        let index = self.by_key.remove(place);
        self.by_key.iter_mut().filter(|other| **other > index).for_each(|other| *other -= 1);
        Some(self.entries.remove(index as usize).1)
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All entries in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> + '_ {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Place of a key in `by_key`, or where it would go.
    fn find(&self, key: &str) -> Result<usize, usize> {
        self.by_key.binary_search_by(|&index| self.entries[index as usize].0.as_str().cmp(key))
    }
}
