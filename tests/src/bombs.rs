//! Components that are hard on whoever compiles them.

/// A component with one module of so many functions, each with this body.
pub fn functions(count: u32, body: &[u8]) -> Vec<u8> {
    let mut types = vec![0; count as usize];
    types.splice(0..0, leb(count));
    let mut code = leb(count);
    // No locals, the body, its end.
    let function = [&[0], body, &[0x0b]].concat();
    let function = [leb(function.len() as u32), function].concat();
    code.extend(function.iter().copied().cycle().take(function.len() * count as usize));
    let module = [b"\0asm\x01\0\0\0".to_vec(), section(1, &[1, 0x60, 0, 0]), section(3, &types), section(10, &code)];
    [b"\0asm\x0d\0\x01\0".to_vec(), section(1, &module.concat())].concat()
}

/// A component with so many modules, each with a memory and a byte of data at both its ends.
pub fn sparse_memories(count: usize) -> Vec<u8> {
    let data = |place: u32| {
        // i32.const, whose operand is signed: one more digit keeps it positive.
        let mut place = leb(place);
        if let Some(last) = place.last_mut().filter(|last| **last >= 0x40) {
            *last |= 0x80;
            place.push(0);
        }
        [vec![0, 0x41], place, vec![0x0b, 1, 0x58]].concat()
    };
    let data = [vec![2], data(0), data((16 << 20) - 16)].concat();
    let module = [b"\0asm\x01\0\0\0".to_vec(), section(5, &[1, 0, 0x80, 2]), section(11, &data)].concat();
    let modules = section(1, &module).repeat(count);
    [b"\0asm\x0d\0\x01\0".to_vec(), modules].concat()
}

/// A component with types inside types, so many deep.
pub fn nested_types(depth: usize) -> Vec<u8> {
    // One type, which is a component type with one declaration, which is a type …
    let types = [vec![1], [0x41, 1, 1].repeat(depth), vec![0x41, 0]].concat();
    [b"\0asm\x0d\0\x01\0".to_vec(), section(7, &types)].concat()
}

/// A body that takes long to compile for its size: values that all depend on each other, in loops.
pub fn slow_body(size: usize) -> Vec<u8> {
    // loop; i32.const 1; br_if 0; end
    [0x03, 0x40, 0x41, 1, 0x0d, 0, 0x0b].repeat(size / 7)
}

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [vec![id], leb(content.len() as u32), content.to_vec()].concat()
}

fn leb(mut number: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}
