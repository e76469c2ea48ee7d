//! Checkpoints: of a tensor whose rows are spread over ranks, one safetensors file that any number of ranks reads.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value, json};

use super::agreement::{Brought, Item, agree, reason};
use super::bytes::{from_bytes, with_bytes};
use super::communicator::Communicator;
use super::shard::ClassShard;
use crate::error::{Error, Result};

/// The file's types, by Candle's.
const TYPES: [(DType, &str); 4] =
    [(DType::F16, "F16"), (DType::BF16, "BF16"), (DType::F32, "F32"), (DType::F64, "F64")];

/// Writes tensors whose rows are spread over the ranks as `shard`'s classes are, (C of the shard, …) each, as one file of (C, …): every
/// rank its rows.
///
/// What is there is replaced at once, when every rank has written: a job that ends before leaves it as it was, and `<path>.partial` beside
/// it. The path is the same file on every rank. The file is what `candle_core::safetensors` reads, and of a `weight` what
/// `candle_nn::linear_no_bias` does.
///
/// # Errors
/// On every rank where on one: a file that cannot be written, tensors of other rows than the shard's, ranks that disagree on names or
/// shapes.
pub fn save_sharded(
    path: impl AsRef<Path>,
    tensors: &[(&str, &Tensor)],
    shard: &ClassShard,
    communicator: &dyn Communicator,
) -> Result<()> {
    let path = path.as_ref();
    let partial = PathBuf::from(format!("{}.partial", path.display()));
    let first = communicator.rank() == 0;
    let layout = Layout::of(tensors, shard);
    let mut items = vec![
        Item::of("what is called", &"save_sharded"),
        Item::number("the number of classes C", shard.classes()),
        Item::of("the tensors' names, types and shapes", &layout.as_ref().map(|layout| &layout.header).ok()),
    ];
    let layout = together(communicator, &items, layout)?;
    items.truncate(1);
    let create = || -> Result<()> {
        let mut file = File::create(&partial).map_err(|error| failed("create", &partial, &error))?;
        let header = &layout.header;
        let written = file
            .write_all(&(header.len() as u64).to_le_bytes())
            .and_then(|()| file.write_all(header.as_bytes()))
            .and_then(|()| file.set_len(8 + (header.len() + layout.bytes) as u64));
        written.map_err(|error| failed("write", &partial, &error))
    };
    together(communicator, &items, if first { create() } else { Ok(()) })?;
    together(communicator, &items, layout.write(&partial, tensors, shard))?;
    let rename = || fs::rename(&partial, path).map_err(|error| failed("rename", &partial, &error));
    together(communicator, &items, if first { rename() } else { Ok(()) })
}

/// The rows of `shard`'s classes of the tensor `name` of a file, (C of the shard, …), whoever wrote it: a rank reads its own alone.
///
/// # Errors
/// A file that cannot be read or is none of safetensors; no such tensor, of another number of rows than the shard's classes, or of another
/// type than floats.
pub fn load_sharded(path: impl AsRef<Path>, name: &str, shard: &ClassShard, device: &Device) -> Result<Tensor> {
    let path = path.as_ref();
    let mut file = File::open(path).map_err(|error| failed("open", path, &error))?;
    let no = |what: String| Error::Sharded(format!("{}: {what}", path.display()));
    let (start, header) = read_header(&mut file, path)?;
    let entry = header.get(name).ok_or_else(|| no(format!("there is no tensor {name:?}")))?;
    let numbers = |key: &str| -> Option<Vec<usize>> {
        entry[key].as_array()?.iter().map(|number| Some(number.as_u64()? as usize)).collect()
    };
    let (Some(dims), Some(offsets)) = (numbers("shape"), numbers("data_offsets")) else {
        return Err(no(format!("{name:?} has no shape or no place")));
    };
    let &(dtype, _) = TYPES
        .iter()
        .find(|(_, known)| entry["dtype"] == *known)
        .ok_or_else(|| no(format!("{name:?} is {}, not of floats", entry["dtype"])))?;
    if dims.first() != Some(&shard.classes()) {
        let classes = shard.classes();
        return Err(no(format!("{name:?} is of shape {dims:?}, the shard is of {classes} classes")));
    }
    let row = dims[1..].iter().product::<usize>() * dtype.size_in_bytes();
    if offsets.len() != 2 || offsets[1].checked_sub(offsets[0]) != Some(row * shard.classes()) {
        return Err(no(format!("{name:?} of shape {dims:?} is at {offsets:?}")));
    }
    let shape = [&[shard.len()], &dims[1..]].concat();
    let at = start + (offsets[0] + shard.range().start * row) as u64;
    let tensor = from_bytes(dtype, &shape, |bytes| {
        let read = file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(bytes));
        read.map_err(|error| failed("read", path, &error))
    })?;
    Ok(tensor.to_device(device)?)
}

/// What a file holds, and where.
struct Layout {
    header: String,
    /// Of the data
    bytes: usize,
    /// Of a tensor: where it begins in the data, and the bytes of a row
    places: Vec<(usize, usize)>,
}

impl Layout {
    fn of(tensors: &[(&str, &Tensor)], shard: &ClassShard) -> Result<Self> {
        let (mut entries, mut places, mut start) = (Map::new(), Vec::new(), 0);
        for &(name, tensor) in tensors {
            if name == "__metadata__" || entries.contains_key(name) {
                return Err(Error::Sharded(format!("{name:?} is no tensor's name, or is two's")));
            }
            if tensor.dims().first() != Some(&shard.len()) {
                let (dims, rows) = (tensor.dims(), shard.len());
                return Err(Error::Sharded(format!("{name:?} is of shape {dims:?}, the shard has {rows} rows")));
            }
            let dtype = tensor.dtype();
            let Some((_, type_name)) = TYPES.iter().find(|(known, _)| *known == dtype) else {
                return Err(Error::Sharded(format!("{name:?} is {}, not of floats", dtype.as_str())));
            };
            let shape = [&[shard.classes()], &tensor.dims()[1..]].concat();
            let row = shape[1..].iter().product::<usize>() * dtype.size_in_bytes();
            let end = start + row * shard.classes();
            entries.insert(name.into(), json!({"dtype": type_name, "shape": shape, "data_offsets": [start, end]}));
            places.push((start, row));
            start = end;
        }
        let mut header = Value::Object(entries).to_string();
        // The data begins at a multiple of 8 bytes.
        header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
        Ok(Self { header, bytes: start, places })
    }

    /// A rank's rows to their places.
    fn write(&self, path: &Path, tensors: &[(&str, &Tensor)], shard: &ClassShard) -> Result<()> {
        let file = OpenOptions::new().write(true).open(path);
        let mut file = file.map_err(|error| failed("open", path, &error))?;
        let data = 8 + self.header.len() as u64;
        for (&(_, tensor), &(start, row)) in tensors.iter().zip(&self.places) {
            let at = data + (start + shard.range().start * row) as u64;
            with_bytes(&tensor.to_device(&Device::Cpu)?, |bytes| {
                let written = file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(bytes));
                written.map_err(|error| failed("write", path, &error))
            })?;
        }
        file.sync_all().map_err(|error| failed("write", path, &error))
    }
}

/// Where the data begins, and the tensors of the header.
fn read_header(file: &mut File, path: &Path) -> Result<(u64, Value)> {
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|error| failed("read", path, &error))?;
    let size = file.metadata().map_err(|error| failed("read", path, &error))?.len();
    let length = u64::from_le_bytes(length);
    let none = |why: String| Error::Sharded(format!("{}: no file of safetensors: {why}", path.display()));
    if length > size.saturating_sub(8) {
        return Err(none(format!("a header of {length} bytes in a file of {size}")));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(|error| failed("read", path, &error))?;
    Ok((8 + length, serde_json::from_slice(&header).map_err(|error| none(error.to_string()))?))
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::Sharded(format!("cannot {what} {}: {error}", path.display()))
}

/// What every rank has done, or the error of the first that could not.
fn together<T>(communicator: &dyn Communicator, items: &[Item], done: Result<T>) -> Result<T> {
    let why = done.as_ref().err().map(reason);
    let brought = match &why {
        None => Ok(Brought { rows: 0, wants_features: false }),
        Some(why) => Err(why.as_str()),
    };
    agree(communicator, items, brought)?;
    done
}
