//! Column chunks of ours beside those of the parquet crate.
//!
//! **Invariant:** one reader gets the same values and statistics from both.

use std::sync::Arc;

use arrow_array::types::Int32Type;
use arrow_array::{
    Array, ArrayRef, BinaryArray, Date32Array, Decimal128Array, Int16Array, Int32Array, Int64Array,
    PrimitiveArray, RecordBatch, StringArray, Time64MicrosecondArray, TimestampMicrosecondArray,
};
use arrow_schema::{Field, Schema, SchemaRef};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::arrow_writer::{ArrowRowGroupWriterFactory, compute_leaves};
use parquet::arrow::{ArrowSchemaConverter, add_encoded_arrow_schema_to_metadata};
use parquet::basic::{Compression as Codec, Encoding, Type as Physical, ZstdLevel};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesPtr};
use parquet::file::reader::FileReader as _;
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::SchemaDescriptor;
use proptest::prelude::*;

use super::*;

/// How a file is made.
#[derive(Debug, Clone, Copy)]
struct Way {
    has_dictionary: bool,
    is_compressed: bool,
    is_own: bool,
}

fn codec() -> Codec {
    Codec::ZSTD(ZstdLevel::try_new(1).unwrap())
}

fn properties(schema: &Schema, descriptor: &SchemaDescriptor, way: Way) -> WriterPropertiesPtr {
    let encoding = match descriptor.column(0).physical_type() {
        Physical::BYTE_ARRAY => Encoding::DELTA_LENGTH_BYTE_ARRAY,
        _ => Encoding::DELTA_BINARY_PACKED,
    };
    let mut properties = WriterProperties::builder()
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_dictionary_page_size_limit(DICTIONARY_BYTES_MAX)
        .set_dictionary_enabled(way.has_dictionary)
        .set_encoding(encoding)
        .set_compression(if way.is_compressed { codec() } else { Codec::UNCOMPRESSED })
        .build();
    add_encoded_arrow_schema_to_metadata(schema, &mut properties);
    Arc::new(properties)
}

/// A file of one column and one row group.
fn file(batches: &[ArrayRef], is_nullable: bool, way: Way) -> Bytes {
    let data_type = batches[0].data_type().clone();
    let schema: SchemaRef =
        Arc::new(Schema::new(vec![Field::new("c", data_type.clone(), is_nullable)]));
    let descriptor = ArrowSchemaConverter::new().convert(&schema).unwrap();
    let properties = properties(&schema, &descriptor, way);
    let mut file =
        SerializedFileWriter::new(Vec::new(), descriptor.root_schema_ptr(), properties).unwrap();
    let chunk = if way.is_own {
        let mut packer = Packer::new(codec());
        let Way { has_dictionary, is_compressed, .. } = way;
        let column = descriptor.column(0);
        let spec = Spec { column, codec: codec(), has_dictionary, is_compressed };
        let mut column = flat_column(&data_type, spec).expect("a column that is known here");
        batches.iter().for_each(|batch| column.append(batch, &mut packer).unwrap());
        column.finish(&mut packer).unwrap()
    } else {
        let factory = ArrowRowGroupWriterFactory::new(&file, Arc::clone(&schema));
        let mut column = factory.create_column_writers(0).unwrap().remove(0);
        for batch in batches {
            column.write(&compute_leaves(schema.field(0), batch).unwrap()[0]).unwrap();
        }
        EncodedColumn::Library(Box::new(column.close().unwrap()))
    };
    let mut group = file.next_row_group().unwrap();
    chunk.append_to(&mut group).unwrap();
    group.close().unwrap();
    file.into_inner().unwrap().into()
}

fn read(file: &Bytes) -> (Vec<RecordBatch>, ParquetMetaData) {
    let reader = ParquetRecordBatchReaderBuilder::try_new(file.clone()).unwrap();
    let metadata = reader.metadata().as_ref().clone();
    let batches = reader.with_batch_size(10_000).build().unwrap();
    (batches.collect::<Result<_, _>>().unwrap(), metadata)
}

/// Reads what both writers made of the same rows, with encodings and without compression.
fn compare(batches: &[ArrayRef], is_nullable: bool) {
    for (has_dictionary, is_compressed) in
        [(true, true), (true, false), (false, true), (false, false)]
    {
        let way = Way { has_dictionary, is_compressed, is_own: true };
        let (own, library) = compare_contents(batches, is_nullable, way);
        let (own, library) = (own.row_group(0).column(0), library.row_group(0).column(0));
        assert_eq!(own.encodings_mask(), library.encodings_mask(), "{way:?}");
        let has_page = own.dictionary_page_offset().is_some();
        assert_eq!(has_page, library.dictionary_page_offset().is_some(), "{way:?}");
    }
}

/// Compares values, statistics, sizes; the dictionary may be left at another row.
fn compare_contents(
    batches: &[ArrayRef],
    is_nullable: bool,
    way: Way,
) -> (ParquetMetaData, ParquetMetaData) {
    let (own, own_metadata) = read(&file(batches, is_nullable, way));
    let (library, metadata) = read(&file(batches, is_nullable, Way { is_own: false, ..way }));
    assert_eq!(own, library, "{way:?}");
    let own = own_metadata.row_group(0).column(0);
    let library = metadata.row_group(0).column(0);
    assert_eq!(own.statistics(), library.statistics(), "{way:?}");
    assert_eq!(own.num_values(), library.num_values());
    assert_eq!(own.compression(), library.compression());
    assert_eq!(own.unencoded_byte_array_data_bytes(), library.unencoded_byte_array_data_bytes());
    assert_eq!(own.definition_level_histogram(), library.definition_level_histogram());
    // Before compression, which finds more or less in data that was made up.
    let (size, of_library) = (own.uncompressed_size(), library.uncompressed_size());
    let most = of_library + of_library / 12 + 512;
    assert!(size <= most, "{way:?}: {size} bytes instead of {of_library}");
    (own_metadata, metadata)
}

/// The same rows in batches of the sizes that a sink makes, as whole arrays and as slices.
fn cut(array: &ArrayRef, rows: usize) -> Vec<ArrayRef> {
    (0..array.len())
        .step_by(rows)
        .map(|start| array.slice(start, rows.min(array.len() - start)))
        .collect()
}

/// Some values beside NULLs: `of` of every row number, each `nulls`th row without one.
fn some<T>(rows: usize, nulls: usize, of: impl Fn(usize) -> T) -> Vec<Option<T>> {
    (0..rows).map(|row| (nulls == 0 || row % nulls > 0).then(|| of(row))).collect()
}

fn mixed(row: usize) -> u64 {
    (row as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[test]
fn integers_of_every_kind_come_back() {
    for nulls in [0, 1, 7, 20_000] {
        for distinct in [1, 3, 2000, u64::MAX] {
            let rows = 25_000;
            let long = |row| (mixed(row) % distinct) as i64;
            let int = |row| (mixed(row) % distinct) as i32;
            let arrays: [ArrayRef; 7] = [
                Arc::new(Int16Array::from(some(rows, nulls, |row| long(row) as i16))),
                Arc::new(Int32Array::from(some(rows, nulls, int))),
                Arc::new(Date32Array::from(some(rows, nulls, int))),
                Arc::new(Int64Array::from(some(rows, nulls, long))),
                Arc::new(
                    TimestampMicrosecondArray::from(some(rows, nulls, long)).with_timezone("UTC"),
                ),
                Arc::new(Time64MicrosecondArray::from(some(rows, nulls, long))),
                Arc::new(
                    Decimal128Array::from(some(rows, nulls, |row| i128::from(long(row) % 1000)))
                        .with_precision_and_scale(15, 2)
                        .unwrap(),
                ),
            ];
            for array in arrays {
                compare(&cut(&array, 8192), true);
            }
        }
    }
}

#[test]
fn strings_of_every_length_come_back() {
    for nulls in [0, 1, 5] {
        for (distinct, len) in
            [(1, 0), (4, 40), (900, 9), (50, 33), (20, 300), (u64::MAX, 20), (3000, 200)]
        {
            let text = |row: usize| {
                let number = mixed(row) % distinct;
                let len = (number as usize).wrapping_mul(31) % (len + 1);
                let mut text = format!("{number:x}");
                text.truncate(len);
                while text.len() < len {
                    text.push(if number.is_multiple_of(3) { 'é' } else { 'x' });
                }
                text
            };
            let texts = some(25_000, nulls, text);
            let array: ArrayRef = Arc::new(StringArray::from(texts.clone()));
            compare(&cut(&array, 8192), true);
            let bytes = texts.iter().map(|text| text.as_ref().map(String::as_bytes));
            let array: ArrayRef = Arc::new(bytes.collect::<BinaryArray>());
            compare(&cut(&array, 5000), true);
        }
    }
}

#[test]
fn strings_that_differ_late_or_in_length_only_are_told_apart() {
    let long = |last: char| format!("{}{last}", "a".repeat(40));
    let values = ["".to_owned(), "\0".to_owned(), "\0\0".to_owned(), "a".repeat(31)];
    let values = values.into_iter().chain(["a".repeat(32), "a".repeat(33)]);
    let values: Vec<String> =
        values.chain([long('a'), long('b'), long('\0'), "a\0".to_owned()]).collect();
    // Enough pairs for some of them to meet in one place.
    let pairs = (0..800).map(|row| format!("{}{}", row % 400, &"\0"[..row / 400]));
    let values: Vec<String> = values.into_iter().chain(pairs).collect();
    let array: StringArray = (0..2000).map(|row| Some(&values[row * 7 % values.len()])).collect();
    compare(&cut(&(Arc::new(array) as ArrayRef), 100), false);
}

#[test]
fn bounds_of_long_values_are_cut_as_the_library_cuts_them() {
    let values = ["z", "\u{7f}", "\u{10ffff}", "é", "aé"].map(|value| value.repeat(3000));
    for value in &values {
        let array: StringArray = [Some("b"), Some(value.as_str()), None].into_iter().collect();
        compare(&[Arc::new(array) as ArrayRef], true);
        for (last, len) in [(0xff, 300), (0xff, 64), (0xff, 256), (0x7f, 257)] {
            let bytes = vec![last; len];
            let array: BinaryArray = [Some(&b"b"[..]), Some(&bytes)].into_iter().collect();
            compare(&[Arc::new(array) as ArrayRef], false);
        }
    }
}

#[test]
fn short_and_long_batches_share_a_dictionary() {
    let values = ["", "\0", "a", "a\0", "abcdefgh", "abcdefg"];
    let short: StringArray = (0..300).map(|row| Some(values[row % 6])).collect();
    let long = ["abcdefgh", "abcdefghi", "a", "", "abcdefgh\0"];
    let long: StringArray = (0..300).map(|row| Some(long[row % 5])).collect();
    let batches = [Arc::new(short) as ArrayRef, Arc::new(long)];
    let of = |numbers: [usize; 4]| numbers.map(|number| Arc::clone(&batches[number]));
    compare(&of([0, 1, 0, 1]), false);
    compare(&of([1, 0, 0, 1]), false);
}

#[test]
fn a_dictionary_that_becomes_too_large_is_left() {
    // Indices of 16 bits, then a megabyte of values, each in the middle of a page.
    let rows = 100_000;
    let array: ArrayRef =
        Arc::new((0..rows).map(|row| Some((row * 2) as i64)).collect::<Int64Array>());
    let way = Way { has_dictionary: true, is_compressed: true, is_own: true };
    let (read_back, metadata) = read(&file(&cut(&array, 8192), false, way));
    let column = metadata.row_group(0).column(0);
    let encodings: Vec<_> = column.encodings().collect();
    assert!(encodings.contains(&Encoding::RLE_DICTIONARY), "{encodings:?}");
    assert!(encodings.contains(&Encoding::DELTA_BINARY_PACKED), "{encodings:?}");
    let values = read_back.iter().flat_map(|batch| {
        batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap().values().to_vec()
    });
    assert!(values.eq((0..rows).map(|row| (row * 2) as i64)));
    let texts: ArrayRef = Arc::new(
        (0..30_000)
            .map(|row| Some(format!("{:060}", mixed(row) % 25_000)))
            .collect::<StringArray>(),
    );
    let (metadata, _) = compare_contents(&cut(&texts, 8192), true, way);
    assert!(metadata.row_group(0).column(0).dictionary_page_offset().is_some());
}

#[test]
fn values_that_collide_on_purpose_end_the_dictionary_early() {
    // Multiples of 2 to the 56 have the same upper bits after the multiplication in small tables.
    let colliding = (0..60_000).map(|row| Some((row % 250) << 56 | 1 << 55));
    let array: ArrayRef = Arc::new(colliding.collect::<Int64Array>());
    let way = Way { has_dictionary: true, is_compressed: true, is_own: true };
    let (own, _) = read(&file(&cut(&array, 8192), false, way));
    let (library, _) = read(&file(&cut(&array, 8192), false, Way { is_own: false, ..way }));
    assert_eq!(own, library);
}

#[test]
fn large_values_get_pages_of_their_own() {
    let sizes = [10, 3 << 20, 0, 1 << 20, 7, (1 << 20) + 1, 2 << 20, 5];
    let array: ArrayRef =
        Arc::new(sizes.iter().map(|size| Some("v".repeat(*size))).collect::<StringArray>());
    for (has_dictionary, is_compressed) in [(true, true), (false, true), (false, false)] {
        let way = Way { has_dictionary, is_compressed, is_own: true };
        compare_contents(&[Arc::clone(&array)], true, way);
    }
    let way = Way { has_dictionary: false, is_compressed: true, is_own: true };
    let file = file(&[array], true, way);
    let pages = SerializedFileReader::new(file).unwrap();
    let pages = pages.get_row_group(0).unwrap().get_column_page_reader(0).unwrap();
    let rows: Vec<_> = pages.map(|page| page.unwrap().num_values()).collect();
    assert_eq!(rows, [1, 2, 1, 1, 1, 1, 1], "as many as fit into a page, or one of any size");
}

#[test]
fn differences_that_pass_the_width_of_the_type_wrap() {
    let ends = [i32::MIN, i32::MAX, 0, i32::MIN, -1, i32::MAX];
    let array: PrimitiveArray<Int32Type> = (0..700).map(|row| Some(ends[row % 6])).collect();
    compare(&[Arc::new(array)], false);
    let ends = [i64::MIN, i64::MAX, 0, i64::MIN, -1, i64::MAX, 1 << 57, 1 << 60];
    let array: Int64Array = (0..700).map(|row| Some(ends[row % 8])).collect();
    compare(&[Arc::new(array)], false);
}

#[test]
fn values_below_a_null_do_not_count() {
    let values = vec![5, 99, 7].into();
    let nulls = Some(vec![true, false, true].into());
    let array: ArrayRef = Arc::new(Int32Array::new(values, nulls.clone()));
    compare(&[array], true);
    let text = StringArray::from(vec!["b", "z", "c"]);
    let (offsets, data, _) = text.into_parts();
    let array: ArrayRef = Arc::new(StringArray::new(offsets, data, nulls));
    compare(&[array], true);
}

#[test]
fn what_is_not_known_here_is_left_to_the_library() {
    use arrow_schema::DataType as Of;
    let known = |data_type: Of, codec| {
        let schema = Schema::new(vec![Field::new("c", data_type.clone(), true)]);
        let descriptor = ArrowSchemaConverter::new().convert(&schema).unwrap();
        let column = descriptor.column(0);
        let spec = Spec { column, codec, has_dictionary: true, is_compressed: true };
        flat_column(&data_type, spec).is_some()
    };
    assert!(known(Of::Utf8, codec()));
    assert!(known(Of::Decimal128(18, 2), codec()));
    assert!(!known(Of::Decimal128(19, 2), codec()), "a fixed number of bytes");
    assert!(!known(Of::UInt32, codec()), "orders without a sign");
    assert!(!known(Of::Float64, codec()));
    assert!(!known(Of::Boolean, codec()));
    assert!(!known(Of::Utf8, Codec::SNAPPY));
    let item = Arc::new(Field::new("item", Of::Int32, true));
    assert!(!known(Of::List(item), codec()));
}

fn rows<T: std::fmt::Debug + Clone + 'static>(
    value: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = Vec<Option<T>>> {
    let value = proptest::option::weighted(0.9, value);
    proptest::collection::vec((value, 1_usize..40), 0..200).prop_map(|runs| {
        runs.into_iter().flat_map(|(value, count)| std::iter::repeat_n(value, count)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_integers_come_back(
        values in rows(prop_oneof![any::<i64>(), -3_i64..3, Just(i64::MIN)]), batch in 1_usize..900,
    ) {
        prop_assume!(!values.is_empty());
        let array: ArrayRef = Arc::new(Int64Array::from(values.clone()));
        compare(&cut(&array, batch), true);
        let narrow = values.iter().map(|value| value.map(|value| value as i32));
        let array: ArrayRef = Arc::new(narrow.collect::<Int32Array>());
        compare(&cut(&array, batch), true);
    }

    #[test]
    fn any_strings_come_back(
        values in rows(prop_oneof![".{0,40}", "[ab]{0,3}", "é{0,70}", "\u{10FFFF}{0,30}"]),
        batch in 1_usize..900,
    ) {
        prop_assume!(!values.is_empty());
        let bytes = values.iter().map(|value| value.as_ref().map(String::as_bytes));
        let binary: ArrayRef = Arc::new(bytes.collect::<BinaryArray>());
        let text: ArrayRef = Arc::new(StringArray::from(values));
        compare(&cut(&text, batch), true);
        compare(&cut(&binary, batch), true);
    }
}
