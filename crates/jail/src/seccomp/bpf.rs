//! Rules by system call number to classic BPF (`linux/filter.h`, `Documentation/userspace-api/seccomp_filter.rst`): a
//! binary search over the numbers, then the answer.

use std::collections::BTreeMap;

use crate::sys::Instruction;

/// The answer to one system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Allow,
    /// Fails with this error number.
    Refuse(u16),
    /// Allowed where the low 32 bits of an argument, which is all the kernel reads of the ones asked for here, are, under
    /// a mask, among the values.
    Ask {
        argument: u8,
        mask: u32,
        values: Vec<u32>,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Rules {
    /// `AUDIT_ARCH_*` of the one ABI that exists.
    pub(super) architecture: u32,
    pub(super) calls: BTreeMap<u32, Answer>,
    /// For numbers in between.
    pub(super) otherwise: Answer,
    /// For numbers above the highest and for other ABIs.
    pub(super) unknown: Answer,
}

const LOAD_WORD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

const RETURN_ALLOW: u32 = 0x7fff_0000;
const RETURN_ERRNO: u32 = 0x0005_0000;

// `struct seccomp_data`: number, architecture, instruction pointer, six arguments of 64 bits.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// A run of numbers from `first` up to the next segment's, with one answer.
struct Segment<'a> {
    first: u32,
    answer: &'a Answer,
}

pub(super) fn compile(rules: &Rules) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD_WORD, ARCHITECTURE),
        jump(JUMP_EQUAL, rules.architecture, 1, 0),
    ];
    // Other ABIs get a single answer, which `Ask` could not give.
    program.push(instruction(RETURN, constant(&rules.unknown)));
    program.push(instruction(LOAD_WORD, NUMBER));
    search(&segments(rules), &mut program);
    program
}

fn segments(rules: &Rules) -> Vec<Segment<'_>> {
    let mut segments: Vec<Segment<'_>> = Vec::new();
    let mut put = |first: u32, answer| match segments.last() {
        Some(last) if last.answer == answer => {}
        _ => segments.push(Segment { first, answer }),
    };
    let mut next = 0;
    for (number, answer) in &rules.calls {
        if *number > next {
            put(next, &rules.otherwise);
        }
        put(*number, answer);
        next = number + 1;
    }
    put(next, &rules.unknown);
    segments
}

fn search(segments: &[Segment<'_>], program: &mut Vec<Instruction>) {
    match segments {
        [] => {}
        [only] => answer(only.answer, program),
        _ => {
            let (low, high) = segments.split_at(segments.len() / 2);
            program.push(jump(JUMP_AT_LEAST, high[0].first, 0, 1));
            // Conditional jumps reach 255 instructions, this one any number.
            let skip = program.len();
            program.push(instruction(JUMP, 0));
            search(low, program);
            program[skip].operand = (program.len() - skip - 1) as u32;
            search(high, program);
        }
    }
}

fn answer(answer: &Answer, program: &mut Vec<Instruction>) {
    let Answer::Ask {
        argument,
        mask,
        values,
    } = answer
    else {
        program.push(instruction(RETURN, constant(answer)));
        return;
    };
    // The low half comes first on the little-endian machines that `profile` knows.
    program.push(instruction(LOAD_WORD, ARGUMENTS + 8 * u32::from(*argument)));
    program.push(instruction(AND, *mask));
    for (place, value) in values.iter().enumerate() {
        let to_among = (values.len() - place) as u8;
        program.push(jump(JUMP_EQUAL, *value, to_among, 0));
    }
    program.push(instruction(RETURN, constant(&Answer::Refuse(libc::EPERM as u16))));
    program.push(instruction(RETURN, RETURN_ALLOW));
}

fn constant(answer: &Answer) -> u32 {
    match answer {
        Answer::Allow => RETURN_ALLOW,
        Answer::Refuse(error) => RETURN_ERRNO | u32::from(*error),
        Answer::Ask { .. } => RETURN_ERRNO | libc::EPERM as u32,
    }
}

fn instruction(code: u16, operand: u32) -> Instruction {
    Instruction {
        code,
        jump_true: 0,
        jump_false: 0,
        operand,
    }
}

fn jump(code: u16, operand: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction {
        code,
        jump_true,
        jump_false,
        operand,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Runs a program as the kernel does, on one system call.
    pub(in super::super) fn run(
        program: &[Instruction],
        architecture: u32,
        number: u32,
        arguments: [u64; 6],
    ) -> u32 {
        let word = |offset: u32| match offset {
            NUMBER => number,
            ARCHITECTURE => architecture,
            _ => {
                let argument = arguments[((offset - ARGUMENTS) / 8) as usize];
                if offset.is_multiple_of(8) {
                    argument as u32
                } else {
                    (argument >> 32) as u32
                }
            }
        };
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let now = program[at];
            at += 1;
            match now.code {
                LOAD_WORD => accumulator = word(now.operand),
                AND => accumulator &= now.operand,
                JUMP => at += now.operand as usize,
                JUMP_EQUAL | JUMP_AT_LEAST => {
                    let holds = match now.code {
                        JUMP_EQUAL => accumulator == now.operand,
                        _ => accumulator >= now.operand,
                    };
                    at += usize::from(if holds { now.jump_true } else { now.jump_false });
                }
                RETURN => return now.operand,
                code => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn every_number_gets_its_answer() {
        let calls: BTreeMap<u32, Answer> = (0..600)
            .filter(|number| number % 3 != 0)
            .map(|number| match number % 5 {
                0 => (number, Answer::Refuse(7)),
                1 => (
                    number,
                    Answer::Ask {
                        argument: 1,
                        mask: 0xff,
                        values: vec![3, 5],
                    },
                ),
                _ => (number, Answer::Allow),
            })
            .collect();
        let rules = Rules {
            architecture: 9,
            calls: calls.clone(),
            otherwise: Answer::Refuse(1),
            unknown: Answer::Refuse(0x26),
        };
        let program = compile(&rules);
        for number in (0..700).chain([u32::MAX, 0x4000_0001]) {
            for argument in [3u64, 0x105, 4, 0xffff_ffff_0000_0003] {
                let expected = match calls.get(&number) {
                    Some(Answer::Ask { values, .. }) => {
                        if values.contains(&(argument as u32 & 0xff)) {
                            RETURN_ALLOW
                        } else {
                            RETURN_ERRNO | 1
                        }
                    }
                    Some(answer) => constant(answer),
                    None if number < 600 && number != 599 => RETURN_ERRNO | 1,
                    None => RETURN_ERRNO | 0x26,
                };
                let found = run(&program, 9, number, [0, argument, 0, 0, 0, 0]);
                assert_eq!(found, expected, "{number} {argument:#x}");
                assert_eq!(run(&program, 8, number, [0; 6]), RETURN_ERRNO | 0x26);
            }
        }
    }
}
