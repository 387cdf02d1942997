/* Making link programs: which steps a value needs, and which register each of them has. Holds no
 * kernels. Invariant: a register is given out anew only after its last reader. */
#include "machine.h"

/* ORDER LINK */
static int operands_of(int op) {
    if (op < LN_LINK_NEG) return 0;
    return op < LN_LINK_ADD ? 1 : op < LN_LINK_WHERE ? 2 : 3;
}

link_steps link_steps_of(const ln_reduction *r) {
    link_steps l = {};
    l.n_steps = r->n_steps;
    l.n_parameters = r->n_parameters;
    for (int i = 0; i < r->n_steps; i++) l.steps[i] = r->steps[i];
    for (int p = 0; p < r->n_parameters; p++)
        l.parameters[p] = {r->parameters[p].kind, r->parameters[p].value->data};
    return l;
}

int link_step(link_steps *l, int op, int a, int b) {
    l->steps[l->n_steps] = {op, a, b, 0, 0};
    return l->n_steps++;
}

int link_parameter(link_steps *l, int kind, const ln_tensor *values) {
    l->parameters[l->n_parameters] = {kind, values->data};
    return link_step(l, LN_LINK_PARAMETER, l->n_parameters++, 0);
}

/* The last reader of each step that `step` needs, -1 where it needs it not. */
static void find_readers(int *last, const link_steps *l, int step) {
    for (int i = 0; i < l->n_steps; i++) last[i] = -1;
    last[step] = l->n_steps;
    for (int i = step; i >= 0; i--) {
        const int from[] = {l->steps[i].a, l->steps[i].b, l->steps[i].c};
        for (int j = 0; last[i] >= 0 && j < operands_of(l->steps[i].op); j++)
            if (last[from[j]] < i) last[from[j]] = i;
    }
}

static leaf leaf_of(const link_steps *l, const ln_link_step &s) {
    leaf made = {s.op, LN_PARAMETER_SCALAR, NULL, s.number};
    if (s.op == LN_LINK_PARAMETER) {
        made.kind = l->parameters[s.a].kind;
        made.values = l->parameters[s.a].values;
    }
    return made;
}

ln_status program_new(program *p, const link_steps *l, int step) {
    int last[PROGRAM_STEPS], place[PROGRAM_STEPS], held[PROGRAM_REGISTERS], leaves = 0;
    *p = {};
    find_readers(last, l, step);
    for (int r = 0; r < PROGRAM_REGISTERS; r++) held[r] = -1;
    for (int i = 0; i <= step; i++) {
        const ln_link_step &s = l->steps[i];
        const int from[] = {s.a, s.b, s.c};
        if (last[i] < 0) continue;
        if (operands_of(s.op) == 0) {
            place[i] = ~leaves;
            p->leaves[leaves++] = leaf_of(l, s);
            continue;
        }
        int r = 0;
        while (r < PROGRAM_REGISTERS && held[r] >= 0 && last[held[r]] > i) r++;
        if (r == PROGRAM_REGISTERS)
            return ln_fail(LN_BAD_ARGUMENT,
                           "link: needs more than the %d intermediate values that are kept on a "
                           "cuda device",
                           PROGRAM_REGISTERS);
        held[r] = i;
        place[i] = r;
        instruction &made = p->instructions[p->n++];
        made.op = s.op;
        made.to = r;
        for (int j = 0; j < 3; j++) /* what an operation does not take repeats its first operand */
            made.operands[j] = place[from[j < operands_of(s.op) ? j : 0]];
    }
    p->result = place[step];
    return LN_OK;
}
