//! Plans, their workspaces, and memory that cannot be had.

use super::*;

#[test]
fn plans() {
    let at_least = |operand| value(operand, "at least 1", "0");
    let divides = |got: &str| value("q_heads", "a multiple of kv_heads", got);
    let problem = Problem::new(4, 8, 3, 5);
    let overflow = |operand| SizeOverflow { operand };
    let table = [
        (Problem { head_dim: 0, ..problem }, at_least("head_dim")),
        (Problem { kv_heads: 3, ..problem }, divides("4 with kv_heads = 3")),
        (Problem { kv_heads: 0, ..problem }, divides("4 with kv_heads = 0")),
        (Problem { max_q_len: MAX, ..problem }, overflow("queries")),
        (Problem { q_heads: MAX, kv_heads: 1, ..problem }, overflow("queries")),
        (Problem { max_kv_len: MAX / 16 + 1, ..problem }, overflow("keys and values")),
        (Problem { v_dim: MAX, ..problem }, overflow("queries")),
        (Problem { max_q_len: 0, max_kv_len: 0, head_dim: MAX, ..problem }, overflow("workspace")),
        (Problem { max_q_len: 0, max_kv_len: 0, v_dim: MAX, ..problem }, overflow("workspace")),
    ];
    for (problem, expected) in &table {
        assert_error(Plan::new(problem), expected);
    }
    let with = |options: PlanOptions| Plan::with_options(&Problem { max_kv_len: 5000, ..problem }, &options);
    let no_threads = PlanOptions { max_threads: Some(0), ..PlanOptions::default() };
    assert_error(with(no_threads), &at_least("max_threads"));
    assert_error(with(PlanOptions { max_threads: Some(MAX), ..no_threads }), &overflow("workspace"));
    let portable = PlanOptions { level: Some(Level::Portable), bf16_dot: true, ..PlanOptions::default() };
    assert_error(with(portable), &Bf16DotUnavailable { level: "portable" });
}

#[test]
fn workspaces() {
    let options = |threads| PlanOptions { max_threads: Some(threads), ..PlanOptions::default() };
    let base = Problem { v_dim: 6, kv_heads: 2, ..Problem::new(4, 8, 3, 5) };
    let large = Problem { head_dim: 16, v_dim: 40, max_q_len: 90, max_kv_len: 2000, ..base };
    let plan = |problem, threads| Plan::with_options(&problem, &options(threads)).unwrap();
    let table = [
        ("threads", plan(large, 2), plan(large, 1)),
        ("elements for splits of keys", plan(large, 2), plan(Problem { max_kv_len: 1000, ..large }, 2)),
        ("elements for sums", plan(large, 1), plan(Problem { v_dim: 1, ..large }, 1)),
        ("elements for queries", plan(large, 1), plan(Problem { head_dim: 8, ..large }, 1)),
        ("elements for keys", plan(large, 1), plan(Problem { max_kv_len: 5, ..large }, 1)),
    ];
    let call = |plan: &Plan, workspace: &mut _| {
        let Problem { head_dim, v_dim, .. } = *plan.problem();
        let (k, v) = (repeat([1, 2, 5, head_dim]), repeat([1, 2, 5, v_dim]));
        let mut out = [UNTOUCHED; 160];
        let outputs = Outputs::new(ViewMut::new(&mut out, [1, 4, 1, v_dim])?);
        let result = plan.run(&Inputs::new(repeat([1, 4, 1, head_dim]), k, v), outputs, workspace);
        assert_eq!(result.is_err(), untouched(&out));
        result
    };
    for (lacking, plan, other) in &table {
        let error = call(plan, &mut other.workspace().unwrap()).unwrap_err();
        assert_names_its_fields(&error);
        let right = matches!(error, Workspace { part, expected, got } if part == *lacking && expected > got);
        assert!(right, "{lacking}: {error}");
        call(other, &mut plan.workspace().unwrap()).expect(lacking);
    }
}

#[test]
fn memory_that_is_not_there() {
    let out_of_memory = |result: Result<(), AttentionError>, what: &str| {
        let error = result.expect_err(what);
        assert_names_its_fields(&error);
        assert!(matches!(error, OutOfMemory { what: of, .. } if of == what), "{what}: {error}");
    };
    out_of_memory(KeyPanels::<f32>::with_capacity(1, 1, 1, TOO_MANY).map(|_| ()), "key panels");
    out_of_memory(KeyPanels::from_rows(view(K), TOO_MANY / 64).map(|_| ()), "key panels");
    let long = Plan::new(&Problem::new(1, 1, 100, TOO_MANY)).unwrap();
    out_of_memory(long.workspace().map(|_| ()), "workspace");
    let threads = PlanOptions { max_threads: Some(TOO_MANY), ..PlanOptions::default() };
    let many = Plan::with_options(&Problem::new(1, 1, 1, 1), &threads).unwrap();
    out_of_memory(many.workspace().map(|_| ()), "workspace");
    let long = Inputs::new(repeat([1, 1, TOO_MANY, 1]), view([1, 1, 1, 1]), view([1, 1, 1, 1]));
    out_of_memory(attention(&long).map(|_| ()), "out");
    out_of_memory(reference::attention(&long).map(|_| ()), "out");
    assert_error(
        attention(&Inputs::new(repeat([MAX, 1, MAX, 1]), repeat([MAX, 1, 1, 1]), repeat([MAX, 1, 1, 1]))),
        &SizeOverflow { operand: "queries" },
    );
    assert_error(
        attention(&Inputs::new(repeat([MAX, 1, 2, 1]), repeat([MAX, 1, 1, 1]), repeat([MAX, 1, 1, 1]))),
        &SizeOverflow { operand: "out" },
    );
}

/// A plan says what it needs, and is refused where that is more than it may have.
#[test]
fn memory_has_a_limit() {
    let problem = Problem::new(4, 64, 100, 5000);
    let with = |limit, threads| {
        let options =
            PlanOptions { max_workspace_bytes: limit, max_threads: Some(threads), ..PlanOptions::default() };
        Plan::with_options(&problem, &options)
    };
    let needs = with(None, 2).unwrap().workspace_bytes();
    assert!(with(Some(needs), 2).is_ok(), "as much as it needs");
    let too_large = TooLarge { operand: "workspace", axis: "bytes", limit: needs - 1, got: needs };
    assert_error(with(Some(needs - 1), 2), &too_large);
    assert!(with(Some(needs - 1), 1).is_ok(), "one thread needs less");
}
