//! What `wit-bindgen` makes of `wit/`. Everything a plugin needs of it is re-exported or wrapped by a module beside it.
#![allow(
    missing_docs,
    unsafe_code,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]

wit_bindgen::generate!({
    path: "../wit",
    world: "plugin",
    pub_export_macro: true,
    export_macro_name: "export_plugin",
    default_bindings_module: "pulse_notifier_sdk::bindings",
});
