//! Kernels as compilers write them, run on memory that is a vector.

use proptest::prelude::*;

use super::*;

/// Memory of the device that begins at an address no thread has.
struct Bytes(Vec<u8>);

const BASE: u64 = 0x10_0000;

impl Bytes {
    fn of(words: &[u32]) -> Self {
        Self(words.iter().flat_map(|word| word.to_le_bytes()).collect())
    }

    fn floats(values: &[f32]) -> Self {
        Self::of(&values.iter().map(|value| value.to_bits()).collect::<Vec<_>>())
    }

    fn words(&self) -> Vec<u32> {
        self.0.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
    }

    fn singles(&self) -> Vec<f32> {
        self.words().into_iter().map(f32::from_bits).collect()
    }

    fn place(&self, address: u64, size: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(address.checked_sub(BASE)?).ok()?;
        (start + size <= self.0.len()).then_some(start..start + size)
    }
}

impl Memory for Bytes {
    fn load(&mut self, address: u64, size: usize) -> Option<u64> {
        let mut value = [0; 8];
        value[..size].copy_from_slice(&self.0[self.place(address, size)?]);
        Some(u64::from_le_bytes(value))
    }

    fn store(&mut self, address: u64, size: usize, value: u64) -> Option<()> {
        let place = self.place(address, size)?;
        self.0[place].copy_from_slice(&value.to_le_bytes()[..size]);
        Some(())
    }
}

fn program(body: &str) -> Program {
    Program::parse(&format!(".version 8.0\n.target sm_70\n.address_size 64\n{body}")).unwrap()
}

/// Runs the only kernel of `text` on `memory`; its parameters are 64 bits each.
fn run_on(
    memory: &mut Bytes,
    text: &str,
    grid: [u32; 3],
    block: [u32; 3],
    parameters: &[u64],
) -> Result<(), Fault> {
    let program = program(text);
    let parameters: Vec<u8> = parameters.iter().flat_map(|value| value.to_le_bytes()).collect();
    let code = program.code(&program.kernels()[0]).unwrap();
    let launch =
        Launch { grid, block, shared: 1024, parameters: &parameters, variables: &[BASE], steps: 1_000_000 };
    code.run(&launch, memory)
}

/// What a kernel with one thread writes to the first word, given the words behind it.
fn compute(statements: &str, inputs: &[u32]) -> u32 {
    let load = |index: usize| format!("ld.global.u32 %r{index}, [%rd1+{}];", 4 * index + 4);
    let loads = (0..inputs.len()).map(load).collect::<Vec<_>>().join("\n");
    let text = format!(
        ".visible .entry k(.param .u64 k_0) {{ .reg .b32 %r<99>; .reg .b64 %rd<99>; .reg .f32 %f<99>; .reg .pred %p<9>;
         ld.param.u64 %rd1, [k_0]; {loads} {statements} st.global.u32 [%rd1], %r90; ret; }}"
    );
    let mut words = vec![0];
    words.extend(inputs);
    let mut memory = Bytes::of(&words);
    run_on(&mut memory, &text, [1; 3], [1; 3], &[BASE]).unwrap();
    memory.words()[0]
}

/// As NVRTC 13 writes `out[i] = a[i] + b[i]`.
const VECTOR_ADD: &str = "
.visible .entry vectorAdd(
	.param .u64 .ptr .align 1 vectorAdd_param_0,
	.param .u64 .ptr .align 1 vectorAdd_param_1,
	.param .u64 .ptr .align 1 vectorAdd_param_2,
	.param .u32 vectorAdd_param_3
)
{
	.reg .pred 	%p<2>;
	.reg .b32 	%r<9>;
	.reg .b64 	%rd<11>;

	.loc	1 3 1, function_name $L__info_string0, inlined_at 1 10 3
	ld.param.b64 	%rd1, [vectorAdd_param_0];
	ld.param.b64 	%rd2, [vectorAdd_param_1];
	ld.param.b64 	%rd3, [vectorAdd_param_2];
	ld.param.b32 	%r2, [vectorAdd_param_3];
	mov.u32 	%r3, %ctaid.x;
	mov.u32 	%r4, %ntid.x;
	mov.u32 	%r5, %tid.x;
	mad.lo.s32 	%r1, %r3, %r4, %r5;
	setp.ge.s32 	%p1, %r1, %r2;
	@%p1 bra 	$L__BB0_2;
	cvta.to.global.u64 	%rd4, %rd1;
	cvta.to.global.u64 	%rd5, %rd2;
	cvta.to.global.u64 	%rd6, %rd3;
	mul.wide.s32 	%rd7, %r1, 4;
	add.s64 	%rd8, %rd4, %rd7;
	ld.global.nc.b32 	%r6, [%rd8];
	add.s64 	%rd9, %rd5, %rd7;
	ld.global.b32 	%r7, [%rd9];
	add.rn.f32 	%r8, %r6, %r7;
	add.s64 	%rd10, %rd6, %rd7;
	st.global.b32 	[%rd10], %r8;
$L__BB0_2:
	ret;
}";

#[test]
fn vectors_are_added_and_the_threads_beyond_the_end_do_nothing() {
    let n = 70_u16;
    let mut values: Vec<f32> = (0..n).map(f32::from).collect();
    values.extend((0..n).map(|i| 1000.0 + f32::from(i)));
    values.extend((0..n).map(|_| -1.0));
    let mut memory = Bytes::floats(&values);
    let at = |part: u64| BASE + part * u64::from(n) * 4;
    run_on(&mut memory, VECTOR_ADD, [3, 1, 1], [32, 1, 1], &[at(0), at(1), at(2), n.into()]).unwrap();
    let expected: Vec<f32> = (0..n).map(|i| 1000.0 + 2.0 * f32::from(i)).collect();
    assert_eq!(memory.singles()[2 * usize::from(n)..], expected);
}

#[test]
fn memory_that_is_not_the_kernels_is_a_fault() {
    let mut memory = Bytes::floats(&[0.0; 8]);
    let beyond = run_on(&mut memory, VECTOR_ADD, [1; 3], [32, 1, 1], &[BASE, BASE, BASE, 32]);
    assert_eq!(beyond, Err(Fault::IllegalAddress { address: BASE + 32 }));
    let crooked = run_on(&mut memory, VECTOR_ADD, [1; 3], [1; 3], &[BASE + 2, BASE, BASE, 1]);
    assert_eq!(crooked, Err(Fault::Misaligned { address: BASE + 2 }));
}

/// Each block sums its part in shared memory, by halves between barriers; then one thread adds to the result.
const REDUCE: &str = "
.visible .entry reduce(.param .u64 p0, .param .u64 p1)
{
    .reg .pred %p<4>; .reg .b32 %r<12>; .reg .b64 %rd<8>;
    .shared .align 4 .b8 sums[1024];
    ld.param.u64 %rd1, [p0];
    ld.param.u64 %rd2, [p1];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mad.lo.u32 %r4, %r2, %r3, %r1;
    mul.wide.u32 %rd3, %r4, 4;
    add.s64 %rd4, %rd1, %rd3;
    ld.global.u32 %r5, [%rd4];
    shl.b32 %r6, %r1, 2;
    mov.u32 %r7, sums;
    add.u32 %r8, %r7, %r6;
    st.shared.u32 [%r8], %r5;
    bar.sync 0;
    shr.u32 %r9, %r3, 1;
LOOP:
    setp.eq.u32 %p1, %r9, 0;
    @%p1 bra DONE;
    setp.ge.u32 %p2, %r1, %r9;
    @%p2 bra SKIP;
    shl.b32 %r10, %r9, 2;
    add.u32 %r10, %r8, %r10;
    ld.shared.u32 %r11, [%r10];
    ld.shared.u32 %r5, [%r8];
    add.u32 %r5, %r5, %r11;
    st.shared.u32 [%r8], %r5;
SKIP:
    barrier.sync.aligned 0;
    shr.u32 %r9, %r9, 1;
    bra.uni LOOP;
DONE:
    setp.ne.u32 %p3, %r1, 0;
    @%p3 ret;
    ld.shared.u32 %r5, [sums];
    red.global.add.u32 [%rd2], %r5;
    ret;
}";

#[test]
fn threads_of_a_block_meet_at_barriers() {
    let mut words: Vec<u32> = (0..512).collect();
    words.push(0);
    let mut memory = Bytes::of(&words);
    run_on(&mut memory, REDUCE, [2, 1, 1], [256, 1, 1], &[BASE, BASE + 2048]).unwrap();
    assert_eq!(memory.words()[512], (0..512).sum::<u32>());
}

#[test]
fn lanes_of_a_warp_exchange_values() {
    let text = "
    .visible .entry k(.param .u64 p0) { .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .pred %p<9>;
        ld.param.u64 %rd1, [p0];
        mov.u32 %r1, %laneid;
        shfl.sync.down.b32 %r2|%p1, %r1, 16, 31, -1; add.s32 %r1, %r1, %r2;
        shfl.sync.bfly.b32 %r2, %r1, 8, 31, -1; add.s32 %r1, %r1, %r2;
        shfl.sync.bfly.b32 %r2, %r1, 4, 31, -1; add.s32 %r1, %r1, %r2;
        shfl.sync.bfly.b32 %r2, %r1, 2, 31, -1; add.s32 %r1, %r1, %r2;
        shfl.sync.bfly.b32 %r2, %r1, 1, 31, -1; add.s32 %r1, %r1, %r2;
        vote.sync.ballot.b32 %r3, %p1, 0xffffffff;
        mov.u32 %r4, %laneid;
        setp.ne.s32 %p2, %r4, 0;
        @%p2 bra END;
        st.global.v2.u32 [%rd1], {%r1, %r3};
    END: ret; }";
    let mut memory = Bytes::of(&[0, 0]);
    run_on(&mut memory, text, [1; 3], [32, 1, 1], &[BASE]).unwrap();
    assert_eq!(memory.words(), [(0..32).sum(), 0xffff]);
}

#[test]
fn functions_are_called_with_arguments_in_their_own_memory() {
    let text = "
    .func (.param .b32 func_retval0) twice_plus(.param .b32 twice_plus_0, .param .align 8 .b8 twice_plus_1[8])
    {   .reg .b32 %r<9>; .reg .b64 %rd<2>;
        ld.param.u32 %r1, [twice_plus_0];
        ld.param.u32 %r2, [twice_plus_1+4];
        shl.b32 %r3, %r1, 1;
        add.u32 %r3, %r3, %r2;
        st.param.b32 [func_retval0+0], %r3;
        ret;
    }
    .visible .entry k(.param .u64 p0) { .reg .b32 %r<9>; .reg .b64 %rd<9>;
        ld.param.u64 %rd1, [p0];
        mov.u32 %r1, %tid.x;
        { .param .b32 param0; st.param.b32 [param0+0], %r1;
          .param .align 8 .b8 param1[8]; st.param.b32 [param1+4], 100;
          .param .b32 retval0;
          call.uni (retval0), twice_plus, (param0, param1);
          ld.param.b32 %r2, [retval0+0]; }
        mul.wide.u32 %rd2, %r1, 4;
        add.u64 %rd2, %rd1, %rd2;
        st.global.u32 [%rd2], %r2;
        ret; }";
    let mut memory = Bytes::of(&[0; 3]);
    run_on(&mut memory, text, [1; 3], [3, 1, 1], &[BASE]).unwrap();
    assert_eq!(memory.words(), [100, 102, 104]);
}

#[test]
fn a_function_that_calls_itself_is_left_alone() {
    let text = ".func again() { call.uni again, (); ret; }
        .visible .entry k(.param .u64 p0) { call.uni again, (); ret; }";
    let result = run_on(&mut Bytes::of(&[]), text, [1; 3], [1; 3], &[0]);
    assert!(matches!(result, Err(Fault::Unsupported(_))), "{result:?}");
}

#[test]
fn the_exponential_of_the_math_library_is_right() {
    // As NVRTC writes expf(x).
    let code = "
        mov.b32 %f1, %r0;
        fma.rn.f32 %f2, %f1, 0f3BBB989D, 0f3F000000;
        cvt.sat.f32.f32 %f3, %f2;
        mov.f32 %f4, 0f4B400001;
        mov.f32 %f5, 0f437C0000;
        fma.rm.f32 %f6, %f3, %f5, %f4;
        add.f32 %f7, %f6, 0fCB40007F;
        neg.f32 %f8, %f7;
        fma.rn.f32 %f9, %f1, 0f3FB8AA3B, %f8;
        fma.rn.f32 %f10, %f1, 0f32A57060, %f9;
        mov.b32 %r1, %f6;
        shl.b32 %r2, %r1, 23;
        mov.b32 %f11, %r2;
        ex2.approx.ftz.f32 %f12, %f10;
        mul.f32 %f13, %f12, %f11;
        mov.b32 %r90, %f13;";
    for x in [0.0_f32, 1.0, -1.0, 10.5, -20.25, 80.0] {
        let result = f32::from_bits(compute(code, &[x.to_bits()]));
        assert!((result / x.exp() - 1.0).abs() < 3e-7, "exp({x}) = {result}");
    }
}

#[test]
fn ways_that_part_by_a_table_meet_again() {
    let code = "
        brx.idx %r0, TABLE;
        TABLE: .branchtargets ZERO, ONE, ONE;
        ZERO: mov.u32 %r90, 70; bra END;
        ONE: mov.u32 %r90, 71;
        END: add.u32 %r90, %r90, 1;";
    assert_eq!([0, 1, 2].map(|index| compute(code, &[index])), [71, 72, 72]);
}

/// Even threads call one function and odd ones another, by addresses that `choose` puts into `%rd4`.
fn calling_by_address(choose: &str) -> String {
    format!(
        "
.func (.param .b32 result) twice(.param .b32 x);
.func (.param .b32 result) ten_more(.param .b32 x);
.extern .global .u64 table[];
.visible .entry k(.param .u64 k_0) {{
    .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .pred %p<2>;
    ld.param.u64 %rd1, [k_0];
    mov.u32 %r1, %tid.x;
    and.b32 %r2, %r1, 1;
    {choose}
    {{
        proto: .callprototype (.param .b32 _) _ (.param .b32 _);
        .param .b32 in;
        .param .b32 out;
        st.param.b32 [in], %r1;
        call (out), %rd4, (in), proto;
        ld.param.b32 %r3, [out];
    }}
    {{
        proto: .callprototype (.param .b32 _) _ (.param .b32 _);
        call (%r4), %rd4, (%r3), proto;
    }}
    mad.wide.u32 %rd5, %r1, 4, %rd1;
    st.global.u32 [%rd5], %r4;
    ret;
}}
.func (.param .b32 result) twice(.param .b32 x) {{
    .reg .b32 %r<3>;
    ld.param.u32 %r1, [x];
    add.u32 %r2, %r1, %r1;
    st.param.b32 [result], %r2;
    ret;
}}
.func (.param .b32 result) ten_more(.param .b32 x) {{
    .reg .b32 %r<3>;
    ld.param.u32 %r1, [x];
    add.u32 %r2, %r1, 10;
    st.param.b32 [result], %r2;
    ret;
}}
.global .align 8 .u64 table[2] = {{twice, ten_more}};"
    )
}

/// What four threads of it write.
const CALLED_TWICE: [u32; 4] = [0, 21, 8, 23];

#[test]
fn functions_are_called_by_their_addresses() {
    let code = calling_by_address(
        "mov.u64 %rd2, twice; mov.u64 %rd3, ten_more; setp.eq.u32 %p1, %r2, 0; selp.b64 %rd4, %rd2, %rd3, %p1;",
    );
    let mut memory = Bytes::of(&[0; 4]);
    run_on(&mut memory, &code, [1; 3], [4, 1, 1], &[BASE]).unwrap();
    assert_eq!(memory.words(), CALLED_TWICE);
}

#[test]
fn functions_are_called_by_a_table_of_them() {
    let code = calling_by_address("ld.global.u64 %rd4, table[%r2];");
    let program = program(&code);
    let addresses = ["twice", "ten_more"].map(|name| program.function_address(name).unwrap());
    let table: Vec<u8> = addresses.iter().flat_map(|address| address.to_le_bytes()).collect();
    let mut memory = Bytes([table, vec![0; 16]].concat());
    run_on(&mut memory, &code, [1; 3], [4, 1, 1], &[BASE + 16]).unwrap();
    assert_eq!(memory.words()[4..], CALLED_TWICE);
}

#[test]
fn a_call_of_what_is_no_function_is_an_illegal_address() {
    let code = calling_by_address("mov.u64 %rd4, 4096;");
    let ran = run_on(&mut Bytes::of(&[0; 4]), &code, [1; 3], [4, 1, 1], &[BASE]);
    assert_eq!(ran, Err(Fault::IllegalAddress { address: 4096 }));
}

#[test]
fn carries_go_from_one_instruction_to_the_next() {
    let code = "add.cc.u32 %r2, %r0, %r1; addc.cc.u32 %r3, %r0, 0; addc.u32 %r90, 0, 0;";
    assert_eq!(compute(code, &[u32::MAX, 1]), 1);
    assert_eq!(compute(code, &[u32::MAX - 1, 1]), 0);
    let code = "sub.cc.u32 %r2, %r0, %r1; subc.u32 %r90, 10, 0;";
    assert_eq!(compute(code, &[1, 2]), 9);
}

#[test]
fn local_arrays_generic_addresses_and_vectors_work() {
    let code = "
        .local .align 8 .b8 depot[16];
        mov.u64 %rd5, depot;
        cvta.local.u64 %rd6, %rd5;
        st.local.v2.u32 [depot], {%r0, %r1};
        ld.u32 %r5, [%rd6+4];
        isspacep.local %p1, %rd6;
        isspacep.global %p2, %rd6;
        selp.u32 %r6, 1000, 0, %p1;
        @%p2 add.u32 %r6, %r6, 1;
        mov.b64 %rd7, {%r5, %r6};
        mov.b64 {%r7, %r8}, %rd7;
        add.u32 %r90, %r7, %r8;";
    assert_eq!(compute(code, &[1, 2]), 1002);
}

#[test]
fn predicates_are_set_joined_and_negated() {
    let code = "
        {.reg.pred q; setp.lt.u32 q, %r1, %r0;}
        setp.lt.u32 %p1|%p2, %r0, %r1;
        setp.eq.and.u32 %p3, %r0, 3, !%p2;
        selp.b32 %r2, 1, 0, %p1;
        selp.b32 %r3, 2, 0, %p2;
        selp.b32 %r4, 4, 0, %p3;
        set.gt.u32.u32 %r5, %r0, %r1;
        or.b32 %r90, %r2, %r3; or.b32 %r90, %r90, %r4; and.b32 %r5, %r5, 8; or.b32 %r90, %r90, %r5;";
    assert_eq!(compute(code, &[3, 4]), 1 | 4);
    assert_eq!(compute(code, &[3, 2]), 2 | 8);
}

#[test]
fn what_is_not_understood_is_named_and_not_run() {
    for (statement, opcode) in [
        ("wmma.load.a.sync.aligned.row.m16n16k16.f16 {%r1}, [%rd1];", "wmma"),
        ("tex.2d.v4.f32.f32 {%r1, %r2, %r3, %r4}, [t, {%f1, %f2}];", "tex"),
        ("add.u32 %r1, nowhere, 1;", "nowhere"),
        ("bra NOWHERE;", "label"),
    ] {
        let program = program(&format!(".entry k() {{ {statement} ret; }}"));
        let refused = program.code(&program.kernels()[0]).unwrap_err().to_string();
        assert!(refused.contains(opcode), "{refused}");
    }
    let table = program(
        ".func f() { ret; } .global .u64 table[2] = {f, nobody}; .entry k() { .reg .b64 %rd<2>; ld.global.u64 %rd1, [table]; }",
    );
    assert!(table.code(&table.kernels()[0]).is_err());
    let printing = program(
        ".extern .func (.param .b32 r) vprintf(.param .b64 a, .param .b64 b);
        .entry k() { call.uni vprintf, (1, 2); call.uni elsewhere, (); ret; }",
    );
    assert!(printing.code(&printing.kernels()[0]).is_ok());
}

#[test]
fn a_kernel_without_end_is_stopped() {
    let text = ".entry k(.param .u64 p) { L: bra L; }";
    assert_eq!(run_on(&mut Bytes::of(&[]), text, [1; 3], [1; 3], &[0]), Err(Fault::TooLong));
    let text = ".entry k(.param .u64 p) { .reg .pred %p<2>; .reg .u32 %r<3>; mov.u32 %r1, %tid.x;
        setp.eq.u32 %p1, %r1, 0; @%p1 bra A; bar.sync 1; A: bar.sync 2; ret; }";
    assert_eq!(run_on(&mut Bytes::of(&[]), text, [1; 3], [2, 1, 1], &[0]), Err(Fault::Stuck));
}

#[test]
fn shared_memory_of_the_launch_begins_behind_that_of_the_kernel() {
    let text = ".extern .shared .align 16 .b8 dynamic[];
    .visible .entry k(.param .u64 p0) { .reg .b32 %r<9>; .reg .b64 %rd<9>;
        .shared .align 4 .b8 own[4];
        ld.param.u64 %rd1, [p0];
        mov.u64 %rd2, own[0];
        st.shared.u32 [%rd2], 1;
        st.shared.u32 [dynamic+8], 2;
        ld.shared.u32 %r1, [own];
        ld.shared.u32 %r2, [dynamic+8];
        mov.u32 %r3, %dynamic_smem_size;
        st.global.u32 [%rd1], %r1; st.global.u32 [%rd1+4], %r2; st.global.u32 [%rd1+8], %r3;
        ret; }";
    let mut memory = Bytes::of(&[0; 3]);
    run_on(&mut memory, text, [1; 3], [1; 3], &[BASE]).unwrap();
    assert_eq!(memory.words(), [1, 2, 1024]);
}

#[test]
fn a_variable_of_the_module_is_used_by_its_address() {
    let text = ".visible .global .align 4 .u32 counter = 5;
        .entry k(.param .u64 p) { .reg .b32 %r<3>; atom.global.add.u32 %r1, [counter], 2;
        st.global.u32 [counter+4], %r1; ret; }";
    let mut memory = Bytes::of(&[40, 0]);
    run_on(&mut memory, text, [1; 3], [1; 3], &[0]).unwrap();
    assert_eq!(memory.words(), [42, 40]);
    let program = program(text);
    assert_eq!(program.code(&program.kernels()[0]).unwrap().variables(), ["counter"]);
}

/// Pieces of which random bodies are made.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z]{1,4}(\\.(u32|s64|f32|b16|sync|wide|lo|rn|v2|global|param|pred)){0,3}",
        "[%@!.$]?[a-z]{1,2}[0-9]{0,2}",
        "[0-9]{1,3}|0f3F800000|0x[0-9a-f]{1,9}",
        "[\\[\\]{}(),;:|+<>=-]",
        Just("ld.param.u64 %rd1, [k_0];".to_owned()),
        Just("add.s32 %r1, %r2, %r3;".to_owned()),
        Just("setp.lt.f32 %p1, %f1, %f2; @%p1 bra L1; L1:".to_owned()),
        Just("bar.sync 0;".to_owned()),
    ]
}

proptest! {
    #[test]
    fn any_body_is_run_or_refused_without_a_panic(pieces in prop::collection::vec(piece(), 0..40)) {
        let text = format!(".entry k(.param .u64 k_0) {{ {} }}", pieces.join(" "));
        let Ok(program) = Program::parse(&format!(".version 8.0\n.target sm_70\n{text}")) else { return Ok(()) };
        for kernel in program.kernels() {
            let Ok(code) = program.code(kernel) else { continue };
            let parameters = vec![0; 64];
            let launch = Launch {
                grid: [2, 1, 1], block: [33, 1, 1], shared: 64, parameters: &parameters, variables: &[], steps: 10_000,
            };
            let _ = code.run(&launch, &mut Bytes::of(&[0; 16]));
        }
    }

    #[test]
    fn a_loop_sums_as_many_numbers_as_it_is_told(n in 0_u32..200, block in 1_u32..70) {
        let text = "
        .visible .entry k(.param .u64 p0, .param .u64 p1) { .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .pred %p<3>;
            ld.param.u64 %rd1, [p0];
            ld.param.u32 %r1, [p1];
            mov.u32 %r2, %tid.x;
            add.u32 %r1, %r1, %r2;
            mov.u32 %r3, 0;
            mov.u32 %r4, 0;
        LOOP: setp.ge.u32 %p1, %r4, %r1;
            @%p1 bra DONE;
            add.u32 %r4, %r4, 1;
            add.u32 %r3, %r3, %r4;
            bra LOOP;
        DONE: mad.wide.u32 %rd2, %r2, 4, %rd1;
            st.global.u32 [%rd2], %r3;
            ret; }";
        let mut memory = Bytes::of(&vec![0; block as usize]);
        run_on(&mut memory, text, [1; 3], [block, 1, 1], &[BASE, n.into()]).unwrap();
        let expected: Vec<u32> = (0..block).map(|thread| (n + thread) * (n + thread + 1) / 2).collect();
        prop_assert_eq!(memory.words(), expected);
    }
}
