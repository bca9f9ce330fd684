//! What a component is made of, counted before anybody compiles it: bytes and limits in, figures or a refusal out. Code
//! is looked over, not understood: whether it is any good, the compiler tells.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use wasmparser::{Encoding, Instance, Parser, Payload};

use super::admission::AdmissionError;

/// What a component may be made of, and what compiling it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentLimits {
    /// Its size.
    pub bytes_max: usize,
    /// Functions, in all its modules together.
    pub functions_max: u32,
    /// The code of one function.
    pub function_bytes_max: usize,
    /// Instances of core modules.
    pub core_instances_max: u32,
    /// Memories that its modules define.
    pub memories_max: u32,
    /// Tables that its modules define.
    pub tables_max: u32,
    /// Processor time that compiling it may take, in whole seconds.
    pub compile_cpu: Duration,
    /// Memory that compiling it may take.
    pub compile_bytes_max: usize,
}

impl ComponentLimits {
    /// What nobody's plugin may have more of: this is what the sandbox has room for.
    pub const MOST: Self = Self {
        bytes_max: 64 << 20,
        functions_max: 500_000,
        function_bytes_max: 7 << 20,
        core_instances_max: 256,
        memories_max: 4,
        tables_max: 32,
        compile_cpu: Duration::from_secs(600),
        compile_bytes_max: 16 << 30,
    };

    /// Whether a component of this size is worth looking at.
    ///
    /// # Errors
    /// [`AdmissionError::TooMuch`].
    pub fn fit(&self, bytes: usize) -> Result<(), AdmissionError> {
        Census { bytes, ..Census::default() }.within(self)
    }
}

impl Default for ComponentLimits {
    fn default() -> Self {
        Self {
            bytes_max: 10 << 20,
            functions_max: 50_000,
            function_bytes_max: 512 << 10,
            core_instances_max: 64,
            memories_max: 4,
            tables_max: 32,
            compile_cpu: Duration::from_secs(10),
            compile_bytes_max: 1 << 30,
        }
    }
}

/// The figures of one component, as they are written in it: a component inside that is made twice counts once. How much
/// of everything there is in the end, the sandbox's room bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Census {
    /// Its size.
    pub bytes: usize,
    /// Functions.
    pub functions: u64,
    /// The code of its largest function.
    pub function_bytes: usize,
    /// Instances of core modules.
    pub core_instances: u64,
    /// Memories.
    pub memories: u64,
    /// Tables.
    pub tables: u64,
}

impl Census {
    /// Counts, and stops where a limit is passed.
    ///
    /// # Errors
    /// [`AdmissionError`], for what is no component too.
    pub fn take(wasm: &[u8], limits: &ComponentLimits) -> Result<Self, AdmissionError> {
        let mut census = Self { bytes: wasm.len(), ..Self::default() };
        limits.fit(wasm.len())?;
        check_kind(wasm)?;
        let broken = |error: wasmparser::BinaryReaderError| AdmissionError::Compile(error.to_string());
        let mut depth = 0_usize;
        for payload in Parser::new(0).parse_all(wasm) {
            match payload.map_err(broken)? {
                Payload::Version { encoding: Encoding::Component | Encoding::Module, .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::FunctionSection(functions) => census.functions += u64::from(functions.count()),
                Payload::CodeSectionEntry(body) => {
                    census.function_bytes = census.function_bytes.max(body.as_bytes().len());
                }
                Payload::MemorySection(memories) => census.memories += u64::from(memories.count()),
                Payload::TableSection(tables) => census.tables += u64::from(tables.count()),
                Payload::InstanceSection(instances) => {
                    for instance in instances {
                        let is_made = matches!(instance.map_err(broken)?, Instance::Instantiate { .. });
                        census.core_instances += u64::from(is_made);
                    }
                }
                _ => {}
            }
            if depth > DEPTH_MAX {
                return Err(AdmissionError::TooDeep);
            }
            census.within(limits)?;
        }
        Ok(census)
    }

    /// Whether this is no more than somebody's plugin may have.
    ///
    /// # Errors
    /// [`AdmissionError::TooMuch`], with the limit that would have to be another.
    pub fn within(&self, limits: &ComponentLimits) -> Result<(), AdmissionError> {
        let count = |size: usize| u64::try_from(size).unwrap_or(u64::MAX);
        let figures = [
            (count(self.bytes), count(limits.bytes_max), "bytes", "component_bytes"),
            (self.functions, limits.functions_max.into(), "functions", "functions"),
            (
                count(self.function_bytes),
                count(limits.function_bytes_max),
                "bytes in one of its functions",
                "function_bytes",
            ),
            (self.core_instances, limits.core_instances_max.into(), "core instances", "core_instances"),
            (self.memories, limits.memories_max.into(), "memories", "memories"),
            (self.tables, limits.tables_max.into(), "tables", "tables"),
        ];
        match figures.into_iter().find(|(found, most, ..)| found > most) {
            Some((found, most, what, key)) => Err(AdmissionError::TooMuch { found, most, what, key }),
            None => Ok(()),
        }
    }
}

fn check_kind(wasm: &[u8]) -> Result<(), AdmissionError> {
    match wasm.first_chunk() {
        Some(b"\0asm\x0d\0\x01\0") => Ok(()),
        Some(b"\0asm\x01\0\0\0") => Err(AdmissionError::CoreModule),
        _ => Err(AdmissionError::NotWasm),
    }
}

/// Components inside components.
const DEPTH_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_modules_and_components_inside_is_counted_too() {
        let text = r#"(component
            (core module $m (memory 1) (table 1 funcref) (func) (func (drop (i32.const 1))))
            (core instance (instantiate $m))
            (component (core module $n (memory 1) (func)) (core instance (instantiate $n)) (core instance (instantiate $n))))"#;
        let wasm = wat::parse_str(text).unwrap();
        let census = Census::take(&wasm, &ComponentLimits::default()).unwrap();
        let expected = Census {
            bytes: wasm.len(),
            functions: 3,
            function_bytes: census.function_bytes,
            core_instances: 3,
            memories: 2,
            tables: 1,
        };
        assert_eq!(census, expected);
        assert!((4..10).contains(&census.function_bytes), "{census:?}");
    }

    #[test]
    fn each_limit_is_named_when_it_is_passed() {
        let module = "(core module $m (memory 1) (table 1 funcref) (func) (func))";
        let wasm = wat::parse_str(format!("(component {module} (core instance (instantiate $m)))")).unwrap();
        let full = ComponentLimits::default();
        let cases = [
            ("component_bytes", ComponentLimits { bytes_max: 8, ..full }),
            ("functions", ComponentLimits { functions_max: 1, ..full }),
            ("function_bytes", ComponentLimits { function_bytes_max: 1, ..full }),
            ("core_instances", ComponentLimits { core_instances_max: 0, ..full }),
            ("memories", ComponentLimits { memories_max: 0, ..full }),
            ("tables", ComponentLimits { tables_max: 0, ..full }),
        ];
        for (key, limits) in cases {
            let refused = Census::take(&wasm, &limits).unwrap_err().to_string();
            assert!(refused.contains(&format!("({key} ")), "{key}: {refused}");
        }
        assert!(Census::take(&wasm, &full).is_ok());
    }

    #[test]
    fn what_is_no_component_is_said_to_be_none() {
        let limits = ComponentLimits::default();
        for (bytes, why) in [
            (&b""[..], "expected a WebAssembly component"),
            (b"\x7fELF", "expected a WebAssembly component"),
            (b"(component)", "expected a WebAssembly component"),
            (b"\0asm\x01\0\0\0", "a core module"),
            (b"\0asm\x0d\0\x01\0\x01\xff", "it does not compile"),
        ] {
            let refused = Census::take(bytes, &limits).unwrap_err().to_string();
            assert!(refused.starts_with(why), "{refused}");
        }
        let deep = "(component ".repeat(40) + &")".repeat(40);
        let refused = Census::take(&wat::parse_str(deep).unwrap(), &limits).unwrap_err().to_string();
        assert!(refused.contains("inside one another"), "{refused}");
    }
}
