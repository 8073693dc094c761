//! ONNX files as tests need them, built up node by node.

/// A file.
#[derive(Clone, Debug, Default)]
pub(super) struct File {
    /// Fields of the graph.
    graph: Vec<u8>,
    tensors: usize,
}

/// A dimension of an input.
#[derive(Clone, Copy, Debug)]
pub(super) enum Size {
    Is(u64),
    Named(&'static str),
}

/// An attribute.
#[derive(Clone, Debug)]
pub(super) struct Attribute(Vec<u8>);

impl File {
    /// With an input.
    pub(super) fn input(mut self, name: &str, sizes: &[Size]) -> Self {
        let dimension = |size: &Size| match size {
            Size::Is(size) => bytes(1, &number(1, *size)),
            Size::Named(name) => bytes(1, &bytes(2, name.as_bytes())),
        };
        let shape = bytes(2, &sizes.iter().flat_map(dimension).collect::<Vec<_>>());
        let kind = bytes(1, &[number(1, 1), shape].concat());
        self.graph.extend(bytes(11, &[bytes(1, name.as_bytes()), bytes(2, &kind)].concat()));
        self
    }

    /// A tensor of numbers with a fraction, of which only the shape matters; its name.
    pub(super) fn weights(&mut self, shape: &[u64]) -> String {
        let name = self.name("w");
        self.graph.extend(bytes(5, &[tensor(1, shape), bytes(8, name.as_bytes())].concat()));
        name
    }

    /// A tensor of whole numbers; its name.
    pub(super) fn numbers(&mut self, numbers: &[i64]) -> String {
        let name = self.name("n");
        let shape = [numbers.len() as u64];
        let raw: Vec<_> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let fields = [tensor(7, &shape), bytes(8, name.as_bytes()), bytes(9, &raw)];
        self.graph.extend(bytes(5, &fields.concat()));
        name
    }

    /// One whole number, which has no dimension; its name.
    pub(super) fn scalar(&mut self, number: i64) -> String {
        let name = self.name("n");
        let fields = [tensor(7, &[]), bytes(7, &varint(number.cast_unsigned())), bytes(8, name.as_bytes())];
        self.graph.extend(bytes(5, &fields.concat()));
        name
    }

    /// A node with one output; the output's name.
    pub(super) fn node(&mut self, operator: &str, inputs: &[&str], attributes: &[Attribute]) -> String {
        let output = self.name("t");
        self.node_into(operator, inputs, &[&output], attributes);
        output
    }

    /// A node with outputs of given names.
    pub(super) fn node_into(
        &mut self,
        operator: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[Attribute],
    ) {
        let inputs = inputs.iter().flat_map(|name| bytes(1, name.as_bytes()));
        let outputs = outputs.iter().flat_map(|name| bytes(2, name.as_bytes()));
        let attributes = attributes.iter().flat_map(|attribute| bytes(5, &attribute.0));
        let node: Vec<_> =
            inputs.chain(outputs).chain(attributes).chain(bytes(4, operator.as_bytes())).collect();
        self.graph.extend(bytes(1, &node));
    }

    /// The bytes of the file.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let graph = [&self.graph[..], &bytes(2, b"net")].concat();
        [number(1, 8), bytes(2, b"gpufn"), bytes(7, &graph)].concat()
    }

    fn name(&mut self, kind: &str) -> String {
        self.tensors += 1;
        format!("{kind}{}", self.tensors)
    }
}

impl Attribute {
    pub(super) fn number(name: &str, value: i64) -> Self {
        Self([bytes(1, name.as_bytes()), number(3, value.cast_unsigned()), number(20, 2)].concat())
    }

    pub(super) fn numbers(name: &str, values: &[i64]) -> Self {
        let packed: Vec<_> = values.iter().flat_map(|value| varint(value.cast_unsigned())).collect();
        Self([bytes(1, name.as_bytes()), bytes(8, &packed), number(20, 7)].concat())
    }

    pub(super) fn floats(name: &str, values: &[f32]) -> Self {
        let packed: Vec<_> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self([bytes(1, name.as_bytes()), bytes(7, &packed), number(20, 6)].concat())
    }

    pub(super) fn text(name: &str, value: &str) -> Self {
        Self([bytes(1, name.as_bytes()), bytes(4, value.as_bytes()), number(20, 3)].concat())
    }
}

fn tensor(kind: u64, shape: &[u64]) -> Vec<u8> {
    let packed: Vec<_> = shape.iter().flat_map(|&size| varint(size)).collect();
    [bytes(1, &packed), number(2, kind)].concat()
}

fn bytes(field: u64, bytes: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
        number >>= 7;
    }
    bytes.push(u8::try_from(number).unwrap());
    bytes
}
