//! What the headers of a message say to us. Pure, and lenient: what is not of the expected type says nothing.

use lapin::types::{AMQPValue, FieldTable};

use crate::amqp::HOPS_HEADER;

/// How often a plugin has relayed it, by the header that the `amqp` sink writes. Who relays it further may write the
/// number in another width.
pub(super) fn hops(headers: Option<&FieldTable>) -> u32 {
    let hops = match headers.and_then(|headers| headers.inner().get(HOPS_HEADER)) {
        Some(AMQPValue::ShortShortInt(hops)) => i64::from(*hops),
        Some(AMQPValue::ShortShortUInt(hops)) => i64::from(*hops),
        Some(AMQPValue::ShortInt(hops)) => i64::from(*hops),
        Some(AMQPValue::ShortUInt(hops)) => i64::from(*hops),
        Some(AMQPValue::LongInt(hops)) => i64::from(*hops),
        Some(AMQPValue::LongUInt(hops)) => i64::from(*hops),
        Some(AMQPValue::LongLongInt(hops)) => *hops,
        _ => 0,
    };
    u32::try_from(hops.max(0)).unwrap_or(u32::MAX)
}

/// The `CC` header's routes; what is no text in it is passed over.
pub(super) fn cc_routes(headers: Option<&FieldTable>) -> Vec<String> {
    let Some(AMQPValue::FieldArray(routes)) = headers.and_then(|headers| headers.inner().get("CC")) else {
        return Vec::new();
    };
    let text = |value: &AMQPValue| match value {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    };
    routes.as_slice().iter().filter_map(text).collect()
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldArray;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hops_are_counted_in_whatever_width_they_are_written() {
        let counted = |value: AMQPValue| {
            let mut headers = FieldTable::default();
            headers.insert(HOPS_HEADER.into(), value);
            hops(Some(&headers))
        };
        for value in [
            AMQPValue::ShortShortInt(3),
            AMQPValue::ShortShortUInt(3),
            AMQPValue::ShortInt(3),
            AMQPValue::ShortUInt(3),
            AMQPValue::LongInt(3),
            AMQPValue::LongUInt(3),
            AMQPValue::LongLongInt(3),
        ] {
            assert_eq!(counted(value.clone()), 3, "{value:?}");
        }
        assert_eq!(counted(AMQPValue::LongLongInt(i64::MAX)), u32::MAX);
        assert_eq!(counted(AMQPValue::LongInt(-1)), 0);
        assert_eq!(counted(AMQPValue::LongString("3".into())), 0);
        assert_eq!(hops(None), 0);
    }

    fn value() -> impl Strategy<Value = AMQPValue> {
        let leaf = prop_oneof![
            Just(AMQPValue::Void),
            any::<bool>().prop_map(AMQPValue::Boolean),
            any::<i8>().prop_map(AMQPValue::ShortShortInt),
            any::<u16>().prop_map(AMQPValue::ShortUInt),
            any::<u32>().prop_map(AMQPValue::LongUInt),
            any::<i64>().prop_map(AMQPValue::LongLongInt),
            any::<f64>().prop_map(AMQPValue::Double),
            crate::hostile::text().prop_map(|text| AMQPValue::LongString(text.into())),
            vec(any::<u8>(), 0..16).prop_map(|bytes| AMQPValue::LongString(bytes.into())),
        ];
        leaf.prop_recursive(2, 8, 4, |inner| {
            vec(inner, 0..4).prop_map(|values| AMQPValue::FieldArray(FieldArray::from(values)))
        })
    }

    proptest! {
        #![proptest_config(crate::hostile::thousands())]

        #[test]
        fn whatever_the_headers_hold_they_are_read(cc in value(), hops_found in value()) {
            let mut headers = FieldTable::default();
            headers.insert("CC".into(), cc.clone());
            let expected = if let AMQPValue::LongUInt(expected) = hops_found { Some(expected) } else { None };
            headers.insert(HOPS_HEADER.into(), hops_found);
            let routes = cc_routes(Some(&headers));
            let entries = if let AMQPValue::FieldArray(entries) = cc { entries.as_slice().len() } else { 0 };
            prop_assert!(routes.len() <= entries);
            prop_assert!(expected.is_none_or(|expected| hops(Some(&headers)) == expected));
        }
    }
}
