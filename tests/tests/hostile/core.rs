//! Guests that no compiler makes: core modules written as text, each made a component of the plugin's world.

use std::path::Path;

use anyhow::{Context, Result};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// A plugin that does this in `notify`, whose only parameter is where the event lies, and which returns where its result
/// lies: 16 bytes that are zero unless written to, which is ok.
pub(crate) fn notifying(body: &str) -> Result<Vec<u8>> {
    component(&format!("{USUAL_REALLOC} (func (export \"notify\") (param i32) (result i32) {body} (i32.const 16))"))
}

/// A plugin whose `cabi_realloc` does this: old place, old size, alignment, new size → new place.
pub(crate) fn reallocating(body: &str) -> Result<Vec<u8>> {
    component(&format!("(func (export \"cabi_realloc\") (param i32 i32 i32 i32) (result i32) {body}) {USUAL_NOTIFY}"))
}

/// A plugin that behaves, of which this is a part.
pub(crate) fn with(fields: &str) -> Result<Vec<u8>> {
    component(&format!("{USUAL_REALLOC} {USUAL_NOTIFY} {fields}"))
}

/// A plugin with these fields, and a memory of a thousand pages.
pub(crate) fn component(fields: &str) -> Result<Vec<u8>> {
    let memory = if fields.contains("(memory (") { "" } else { "(memory (export \"memory\") 1000)" };
    let text = format!("(module {IMPORTS} {memory} {fields})");
    let mut module = wat::parse_str(&text).with_context(|| text.chars().take(2_000).collect::<String>())?;
    let mut resolve = Resolve::default();
    let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit");
    for package in [IO, CLOCKS, RANDOM] {
        resolve.push_str("wasi.wit", package)?;
    }
    resolve.push_path(wit)?;
    let package = resolve.push_str("attack.wit", ATTACK)?;
    let world = resolve.select_world(&[package], None)?;
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)?;
    ComponentEncoder::default().module(&module)?.encode()
}

/// The plugin's world, and the parts of WASI that have something to count.
const ATTACK: &str = "package pulse:attack; world attack { include pulse:notifier/plugin@0.1.0; \
     import wasi:io/poll@0.2.0; import wasi:clocks/monotonic-clock@0.2.0; import wasi:random/random@0.2.0; }";
const IO: &str = "package wasi:io@0.2.0; interface poll { resource pollable; }";
const CLOCKS: &str = "package wasi:clocks@0.2.0; interface monotonic-clock { use wasi:io/poll@0.2.0.{pollable}; \
     subscribe-duration: func(when: u64) -> pollable; }";
const RANDOM: &str = "package wasi:random@0.2.0; interface random { get-random-bytes: func(len: u64) -> list<u8>; }";

const IMPORTS: &str = r#"
    (import "pulse:notifier/irc@0.1.0" "say" (func $say (param i32 i32 i32 i32 i32)))
    (import "wasi:clocks/monotonic-clock@0.2.0" "subscribe-duration" (func $subscribe (param i64) (result i32)))
    (import "wasi:io/poll@0.2.0" "[resource-drop]pollable" (func $drop_pollable (param i32)))
    (import "wasi:random/random@0.2.0" "get-random-bytes" (func $random (param i64 i32)))"#;

/// Gives out memory from 64 KiB on, and never takes it back.
const USUAL_REALLOC: &str = r#"
    (global $free (mut i32) (i32.const 65536))
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
      (global.set $free (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
      (global.get $free)
      (global.set $free (i32.add (global.get $free) (local.get 3))))"#;

const USUAL_NOTIFY: &str = "(func (export \"notify\") (param i32) (result i32) (i32.const 16))";
