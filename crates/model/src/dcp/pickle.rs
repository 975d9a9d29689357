//! Pickles read as data: a machine that builds a tree of nodes and never imports or calls anything.
//!
//! Opcodes: those that Python's pickler of protocols 2 to 5 writes for plain values and
//! dataclasses (<https://github.com/python/cpython/blob/3.13/Lib/pickletools.py>). Every class and
//! function that a pickle names must be in the caller's list; anything else is refused by name.

use std::collections::HashMap;

/// A class or function: its module and its name there.
pub type Global<'a> = (&'a str, &'a str);

/// Place of a node in its pickle. Containers may be shared, so children are places too.
pub type Id = usize;

/// A value of a pickle.
#[derive(Debug, Clone, PartialEq)]
pub enum Node<'a> {
    None,
    Bool(bool),
    Int(i64),
    Str(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Class(Global<'a>),
    /// What a class or function would have made of a tuple of arguments, and the state set on it.
    Object {
        class: Global<'a>,
        args: Id,
        state: Option<Id>,
    },
    /// Something kept outside the pickle.
    Persistent(Id),
}

/// A pickle that was read to its end.
#[derive(Debug)]
pub struct Pickle<'a> {
    nodes: Vec<Node<'a>>,
    root: Id,
}

impl<'a> Pickle<'a> {
    /// Reads `bytes`, which may name the classes that `known` says and no others.
    ///
    /// # Errors
    /// What is wrong, and at which byte.
    pub fn read(bytes: &'a [u8], known: &dyn Fn(Global) -> bool) -> Result<Self, String> {
        let mut machine = Machine {
            bytes,
            at: 0,
            known,
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        let root = machine.run()?;
        Ok(Self {
            nodes: machine.nodes,
            root,
        })
    }

    /// The whole value.
    pub fn root(&self) -> Id {
        self.root
    }

    /// The node at a place.
    pub fn node(&self, id: Id) -> &Node<'a> {
        &self.nodes[id]
    }

    /// Arguments and state of an object of the class with this name.
    pub fn object(&self, id: Id, name: &str) -> Option<(Id, Option<Id>)> {
        match self.node(id) {
            Node::Object { class, args, state } if class.1 == name => Some((*args, *state)),
            _ => None,
        }
    }

    /// The elements of a tuple or list.
    pub fn items(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) | Node::List(items) => Some(items),
            _ => None,
        }
    }

    /// The pairs of a dictionary.
    pub fn pairs(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.node(id) {
            Node::Dict(pairs) => Some(pairs),
            _ => None,
        }
    }

    /// The text at a place.
    pub fn text(&self, id: Id) -> Option<&'a str> {
        match self.node(id) {
            Node::Str(text) => Some(text),
            _ => None,
        }
    }

    /// A field of a dictionary.
    pub fn field(&self, dict: Id, name: &str) -> Option<Id> {
        let pairs = self.pairs(dict)?;
        pairs
            .iter()
            .rev()
            .find(|(key, _)| self.text(*key) == Some(name))
            .map(|(_, value)| *value)
    }

    /// A number that is no less than 0.
    pub fn count(&self, id: Id) -> Option<u64> {
        match self.node(id) {
            Node::Int(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// A tuple or list of numbers that are no less than 0.
    pub fn counts(&self, id: Id) -> Option<Vec<usize>> {
        self.items(id)?
            .iter()
            .map(|i| self.count(*i).and_then(|n| usize::try_from(n).ok()))
            .collect()
    }
}

struct Machine<'a, 'k> {
    bytes: &'a [u8],
    at: usize,
    known: &'k dyn Fn(Global) -> bool,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a, '_> {
    fn run(&mut self) -> Result<Id, String> {
        loop {
            let start = self.at;
            let code = self.take(1)?[0];
            let end = self
                .step(code)
                .map_err(|e| format!("byte {start} of the pickle: {e}"))?;
            if end {
                return self.pop();
            }
        }
    }

    /// One opcode; true at the end.
    fn step(&mut self, code: u8) -> Result<bool, String> {
        match code {
            b'.' => return Ok(true),
            0x80 => match self.byte()? {
                2..=5 => {}
                n => return Err(format!("protocol {n}; known: 2 to 5")),
            },
            0x95 => {
                self.take(8)?; // a frame's length, of use to streams only
            }
            b'(' => self.marks.push(self.stack.len()),
            b'0' => {
                self.pop()?;
            }
            b'N' => self.push(Node::None),
            0x88 => self.push(Node::Bool(true)),
            0x89 => self.push(Node::Bool(false)),
            b'K' => {
                let n = self.byte()?;
                self.push(Node::Int(n.into()));
            }
            b'M' => {
                let n = u16::from_le_bytes(self.array()?);
                self.push(Node::Int(n.into()));
            }
            b'J' => {
                let n = i32::from_le_bytes(self.array()?);
                self.push(Node::Int(n.into()));
            }
            0x8a => {
                let n = self.long()?;
                self.push(Node::Int(n));
            }
            0x8c => {
                let n = self.byte()?;
                self.string(n.into())?;
            }
            b'X' => {
                let n = u32::from_le_bytes(self.array()?);
                self.string(n.into())?;
            }
            0x8d => {
                let n = u64::from_le_bytes(self.array()?);
                self.string(n)?;
            }
            b')' => self.push(Node::Tuple(Vec::new())),
            0x85..=0x87 => {
                let from = self.depth(usize::from(code - 0x84))?;
                self.tuple(from);
            }
            b't' => {
                let from = self.mark()?;
                self.tuple(from);
            }
            b']' => self.push(Node::List(Vec::new())),
            b'}' => self.push(Node::Dict(Vec::new())),
            b'a' => {
                let from = self.depth(1)?;
                self.append(from)?;
            }
            b'e' => {
                let from = self.mark()?;
                self.append(from)?;
            }
            b's' => {
                let from = self.depth(2)?;
                self.insert(from)?;
            }
            b'u' => {
                let from = self.mark()?;
                self.insert(from)?;
            }
            0x94 => {
                let n = u32::try_from(self.memo.len()).map_err(|e| e.to_string())?;
                self.remember(n)?;
            }
            b'q' => {
                let n = self.byte()?;
                self.remember(n.into())?;
            }
            b'r' => {
                let n = u32::from_le_bytes(self.array()?);
                self.remember(n)?;
            }
            b'h' => {
                let n = self.byte()?;
                self.recall(n.into())?;
            }
            b'j' => {
                let n = u32::from_le_bytes(self.array()?);
                self.recall(n)?;
            }
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.global((module, name))?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (&self.nodes[module], &self.nodes[name]) {
                    (Node::Str(module), Node::Str(name)) => {
                        let global = (*module, *name);
                        self.global(global)?;
                    }
                    _ => return Err("a class is named by something else than two texts".into()),
                }
            }
            b'R' | 0x81 => self.call()?,
            b'b' => self.build()?,
            b'Q' => {
                let id = self.pop()?;
                self.push(Node::Persistent(id));
            }
            code => {
                return Err(format!(
                    "opcode {code:#04x}, which no distributed checkpoint needs"
                ));
            }
        }
        Ok(false)
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let left = self.bytes.len() - self.at;
        if n > left {
            return Err(format!(
                "the pickle ends at byte {}, in the middle; the file is truncated",
                self.bytes.len()
            ));
        }
        self.at += n;
        Ok(&self.bytes[self.at - n..self.at])
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// Two's complement, little-endian, of any length up to eight bytes.
    fn long(&mut self) -> Result<i64, String> {
        let n = usize::from(self.byte()?);
        if n > 8 {
            return Err(format!("a number of {n} bytes"));
        }
        let bytes = self.take(n)?;
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut out = [if negative { 0xff } else { 0 }; 8];
        out[..n].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(out))
    }

    fn string(&mut self, n: u64) -> Result<(), String> {
        let n = usize::try_from(n).map_err(|e| e.to_string())?;
        let text = std::str::from_utf8(self.take(n)?).map_err(|e| format!("a text is {e}"))?;
        self.push(Node::Str(text));
        Ok(())
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let n = rest
            .iter()
            .position(|b| *b == b'\n')
            .ok_or("a class's name does not end; the file is truncated")?;
        let line = std::str::from_utf8(self.take(n)?).map_err(|e| format!("a name is {e}"))?;
        self.take(1)?;
        Ok(line)
    }

    fn push(&mut self, node: Node<'a>) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    fn pop(&mut self) -> Result<Id, String> {
        let from = self.depth(1)?;
        let id = self.stack[from];
        self.stack.truncate(from);
        Ok(id)
    }

    /// Where the last `n` of the stack begin, none of them below the last mark.
    fn depth(&self, n: usize) -> Result<usize, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len().checked_sub(n) {
            Some(from) if from >= floor => Ok(from),
            _ => Err("it takes more values than there are".into()),
        }
    }

    fn mark(&mut self) -> Result<usize, String> {
        self.marks.pop().ok_or("there is no mark".into())
    }

    fn tuple(&mut self, from: usize) {
        let items = self.stack.split_off(from);
        self.push(Node::Tuple(items));
    }

    fn last(&mut self) -> Result<&mut Node<'a>, String> {
        let top = self.stack[self.depth(1)?];
        Ok(&mut self.nodes[top])
    }

    fn append(&mut self, from: usize) -> Result<(), String> {
        let items = self.stack.split_off(from);
        match self.last()? {
            Node::List(list) => list.extend(items),
            _ => return Err("it appends to something that is no list".into()),
        }
        Ok(())
    }

    fn insert(&mut self, from: usize) -> Result<(), String> {
        let items = self.stack.split_off(from);
        if !items.len().is_multiple_of(2) {
            return Err("a key has no value".into());
        }
        match self.last()? {
            Node::Dict(pairs) => pairs.extend(items.chunks_exact(2).map(|p| (p[0], p[1]))),
            _ => return Err("it inserts into something that is no dictionary".into()),
        }
        Ok(())
    }

    fn remember(&mut self, n: u32) -> Result<(), String> {
        let top = self.stack[self.depth(1)?];
        self.memo.insert(n, top);
        Ok(())
    }

    fn recall(&mut self, n: u32) -> Result<(), String> {
        let id = self.memo.get(&n).ok_or(format!("nothing is memo {n}"))?;
        self.stack.push(*id);
        Ok(())
    }

    fn global(&mut self, global: Global<'a>) -> Result<(), String> {
        if !(self.known)(global) {
            return Err(format!(
                "it names '{}.{}', which no distributed checkpoint of a model needs; nothing was \
                 run",
                global.0, global.1
            ));
        }
        self.push(Node::Class(global));
        Ok(())
    }

    fn call(&mut self) -> Result<(), String> {
        let (args, class) = (self.pop()?, self.pop()?);
        match (&self.nodes[class], &self.nodes[args]) {
            (Node::Class(("collections", "OrderedDict")), Node::Tuple(items))
                if items.is_empty() =>
            {
                self.push(Node::Dict(Vec::new()));
            }
            (Node::Class(class), Node::Tuple(_)) => {
                let class = *class;
                self.push(Node::Object {
                    class,
                    args,
                    state: None,
                });
            }
            _ => return Err("it calls something that is no class".into()),
        }
        Ok(())
    }

    fn build(&mut self) -> Result<(), String> {
        let given = self.pop()?;
        match self.last()? {
            Node::Object { state, .. } if state.is_none() => *state = Some(given),
            _ => return Err("it sets the state of something that takes none".into()),
        }
        Ok(())
    }
}
