/* The programs of the register machine of machine.h: adding steps, mirroring them, and placing them
 * in registers. Runs nothing. */
#include "machine.h"
#include <string.h>

int REAL(machine_step)(machine *m, int op, int a, int b) {
    m->steps[m->n_steps] = (machine_step){.op = op, .operand = {a, b}};
    m->inside[m->n_steps] = false;
    return m->n_steps++;
}

void REAL(machine_link)(machine *m, int n_steps, const ln_link_step *steps) {
    for (int i = 0; i < n_steps; i++) {
        const ln_link_step *s = &steps[i];
        m->steps[i] = (machine_step){s->op, {s->a, s->b, s->c}, s->number};
    }
    m->n_steps = n_steps;
}

int REAL(machine_parameter)(machine *m, int kind, const real *values) {
    m->parameters[m->n_parameters] = (machine_parameter){values, kind};
    return REAL(machine_step)(m, LN_LINK_PARAMETER, m->n_parameters++, 0);
}

static int operands_of(int op) {
    static const int made[] = {3, 3, 3, 3, 2, 2, 3, 4, 3, 4, 5, 8};
    return op <= LN_LINK_WHERE ? ln_link_operands(op) : made[op - MULTIPLY_ADD];
}

/* ---- Both orientations ---- */

static int mirror_leaf(machine *m, int step) {
    if (m->steps[step].op != LN_LINK_PARAMETER) return step;
    machine_parameter p = m->parameters[m->steps[step].operand[0]];
    if (p.kind == LN_PARAMETER_SCALAR) return step;
    int kind = p.kind == LN_PARAMETER_ROW ? LN_PARAMETER_COLUMN : LN_PARAMETER_ROW;
    return REAL(machine_parameter)(m, kind, p.values);
}

void REAL(machine_mirror)(machine *m, int *mirrored, const int *values, int n) {
    bool needed[MACHINE_STEPS] = {false};
    int own[MACHINE_STEPS], n_steps = m->n_steps;
    for (int i = 0; i < n; i++) needed[values[i]] = true;
    for (int i = n_steps - 1; i >= 0; i--)
        for (int j = 0; needed[i] && j < operands_of(m->steps[i].op); j++)
            needed[m->steps[i].operand[j]] = true;
    for (int i = 0; i < n_steps; i++) {
        if (!needed[i]) continue;
        machine_step s = m->steps[i];
        int operands = operands_of(s.op), moved[MOST_OPERANDS] = {0};
        bool any = false;
        own[i] = operands == 0 ? mirror_leaf(m, i) : i;
        for (int j = 0; j < operands; j++) {
            moved[j] = own[s.operand[j]];
            any |= moved[j] != s.operand[j];
        }
        if (!any) continue;
        own[i] = REAL(machine_step)(m, s.op, 0, 0);
        memcpy(m->steps[own[i]].operand, moved, sizeof moved);
        m->inside[own[i]] = m->inside[i];
    }
    for (int i = 0; i < n; i++) mirrored[i] = own[values[i]];
}

/* ---- Placing ---- */

static bool leaf_varies(const machine *m, const machine_step *s) {
    return s->op == LN_LINK_S ||
           (s->op == LN_LINK_PARAMETER && m->parameters[s->operand[0]].kind == LN_PARAMETER_COLUMN);
}

/* Whether the step's value is a multiple of its one varying operand plus a number. Not where that
 * operand has a number added already: of (1 - s) + epsilon, 1 + epsilon would lose the epsilon. */
static bool is_affine(const machine_step *s, const bool *varies, const bool *shifted) {
    int a = s->operand[0], b = s->operand[1];
    switch (s->op) {
    case LN_LINK_NEG: return true;
    case LN_LINK_ADD:
    case LN_LINK_SUB: return varies[a] != varies[b] && !shifted[a] && !shifted[b];
    case LN_LINK_MUL: return varies[a] != varies[b];
    case LN_LINK_DIV: return !varies[b];
    default: return false;
    }
}

/* Whether the step is the minimum of an array as it is and a number. */
static bool is_limit(const machine *m, const machine_step *s, const bool *varies) {
    int a = s->operand[0], b = s->operand[1];
    if (s->op != LN_LINK_MIN || varies[a] == varies[b]) return false;
    return m->place[varies[a] ? a : b] != PLACE_VIEW;
}

static void find_places(machine *m, const bool *early) {
    bool varies[MACHINE_STEPS], shifted[MACHINE_STEPS] = {false}, output[MACHINE_STEPS] = {false};
    for (int i = 0; i < m->n_outputs; i++) output[m->outputs[i]] = true;
    for (int i = 0; i < m->n_steps; i++) {
        const machine_step *s = &m->steps[i];
        int operands = operands_of(s->op);
        varies[i] = operands == 0 && leaf_varies(m, s);
        for (int j = 0; j < operands; j++) varies[i] |= varies[s->operand[j]];
        m->place[i] = operands == 0 ? PLACE_LEAF : PLACE_NUMBER;
        m->limited[i] = false;
        if (operands == 0 || !varies[i]) continue;
        bool limit = is_limit(m, s, varies), affine = is_affine(s, varies, shifted);
        bool view = !output[i] && !early[i] && (limit || affine);
        m->place[i] = view ? PLACE_VIEW : 0;
        m->limited[i] = view && limit;
        shifted[i] = view && (s->op == LN_LINK_ADD || s->op == LN_LINK_SUB);
        for (int j = 0; view && j < operands; j++) {
            shifted[i] |= shifted[s->operand[j]];
            m->limited[i] |= m->limited[s->operand[j]];
        }
    }
}

/* What is the same for all rows of a tile. */
static void find_early(const machine *m, bool *early) {
    for (int i = 0; i < m->n_steps; i++) {
        const machine_step *s = &m->steps[i];
        early[i] = s->op != LN_LINK_S;
        if (s->op == LN_LINK_PARAMETER)
            early[i] = m->parameters[s->operand[0]].kind != LN_PARAMETER_ROW;
        for (int j = 0; j < operands_of(s->op); j++) early[i] &= early[s->operand[j]];
    }
}

/* A step joined with `first`, its operand number j, which is computed for it alone; op -1: not. */
static machine_step joined(const machine_step *s, const machine_step *first, int j) {
    machine_step made = {.op = -1};
    if (operands_of(first->op) > 3) return made;
    memcpy(made.operand, first->operand, sizeof made.operand);
    int with = s->operand[1 - j], *next = &made.operand[operands_of(first->op)];
    bool adds = s->op == LN_LINK_ADD, left = j == 0;
    *next = with;
    if ((adds || s->op == LN_LINK_SUB) && first->op == LN_LINK_MUL)
        made.op = adds ? MULTIPLY_ADD : left ? MULTIPLY_SUBTRACT : SUBTRACT_PRODUCT;
    if (s->op == LN_LINK_DIV && first->op == LN_LINK_LE && left) made.op = LE_DIVIDE;
    if (s->op == LN_LINK_EXP && first->op == LN_LINK_SUB) made.op = EXP_DIFFERENCE;
    if (s->op == LN_LINK_EXP && first->op == MULTIPLY_SUBTRACT) made.op = EXP_PRODUCT_DIFFERENCE;
    if (s->op == LN_LINK_MUL && first->op == LN_LINK_EXP) made.op = EXP_TIMES;
    if (s->op == LN_LINK_MUL && first->op == EXP_DIFFERENCE) made.op = EXP_DIFFERENCE_TIMES;
    if (s->op == LN_LINK_MUL && first->op == EXP_PRODUCT_DIFFERENCE)
        made.op = EXP_PRODUCT_DIFFERENCE_TIMES;
    if (adds && first->op == EXP_DIFFERENCE_TIMES) made.op = EXP_DIFFERENCE_TIMES_ADD;
    return made;
}

static bool is_array(const machine *m, int step) {
    if (m->place[step] == PLACE_LEAF) return leaf_varies(m, &m->steps[step]);
    return m->place[step] != PLACE_NUMBER;
}

static bool takes_limits(const machine *m, const machine_step *s) {
    bool taken = true; /* but by a divisor */
    for (int j = 0; j < operands_of(s->op); j++)
        taken &= !m->limited[s->operand[j]] || (s->op == LE_DIVIDE && j == 2);
    return taken;
}

/* How many steps that an output needs read each step; an output has two readers more. */
static void count_readers(const machine *m, int *readers) {
    memset(readers, 0, (size_t)m->n_steps * sizeof *readers);
    for (int i = 0; i < m->n_outputs; i++) readers[m->outputs[i]] = 2;
    for (int i = m->n_steps - 1; i >= 0; i--)
        for (int j = 0; readers[i] > 0 && j < operands_of(m->steps[i].op); j++)
            readers[m->steps[i].operand[j]]++;
}

/* (x y) z, of which y and z are early, as x (y z): the latter is computed once a tile. */
static void regroup(machine *m, bool *early) {
    int readers[MACHINE_STEPS];
    count_readers(m, readers);
    for (int i = 0; i < m->n_steps; i++) {
        int *outer = m->steps[i].operand;
        bool late_product = readers[i] > 0 && m->steps[i].op == LN_LINK_MUL && !early[i];
        if (!late_product || early[outer[0]] == early[outer[1]]) continue;
        int product = early[outer[0]] ? outer[1] : outer[0], z = outer[0] + outer[1] - product;
        int *inner = m->steps[product].operand;
        if (m->steps[product].op != LN_LINK_MUL || readers[product] != 1 || z > product ||
            early[inner[0]] == early[inner[1]])
            continue;
        int x = early[inner[0]] ? inner[1] : inner[0], y = inner[0] + inner[1] - x;
        m->steps[product] = (machine_step){.op = LN_LINK_MUL, .operand = {y, z}};
        m->steps[i] = (machine_step){.op = LN_LINK_MUL, .operand = {x, product}};
        early[product] = true;
    }
}

/* An early step is not taken into one that runs for every row. */
static void fuse(machine *m, const bool *early) {
    int readers[MACHINE_STEPS];
    count_readers(m, readers);
    for (int i = 0; i < m->n_steps; i++) {
        machine_step *s = &m->steps[i], made = {.op = -1};
        int first = -1;
        for (int j = 0; j < 2 && made.op < 0 && m->place[i] == 0 && j < operands_of(s->op); j++) {
            first = s->operand[j];
            if (m->place[first] != 0 || readers[first] != 1 || early[first] != early[i]) continue;
            made = joined(s, &m->steps[first], j);
        }
        bool arrays = true; /* what takes three operands takes no numbers, but as a bound */
        for (int j = 0; made.op >= 0 && j < operands_of(made.op); j++)
            arrays &= is_array(m, made.operand[j]) || (made.op == LE_DIVIDE && j == 1);
        if (made.op < 0 || (!arrays && operands_of(made.op) > 2) || !takes_limits(m, &made))
            continue;
        *s = made;
        m->inside[i] |= m->inside[first];
    }
}

/* Whether a step is an array as it is. */
static bool is_plain(const machine *m, int step) {
    int place = m->place[step];
    return place == 0 || (place == PLACE_LEAF && leaf_varies(m, &m->steps[step]));
}

/* A sum of a product that is computed for the step's operand alone, whose operands are plain. */
static bool is_own_sum(const machine *m, const bool *early, const int *readers, int step, int j) {
    int sum = m->steps[step].operand[j];
    const machine_step *s = &m->steps[sum];
    bool own = s->op == MULTIPLY_ADD && m->place[sum] == 0 && readers[sum] == 1;
    for (int k = 0; own && k < 3; k++) own = is_plain(m, s->operand[k]);
    return own && early[sum] == early[step];
}

/* Takes the sums of products into the exponentials that read them. */
static void fuse_sums(machine *m, const bool *early) {
    int readers[MACHINE_STEPS];
    count_readers(m, readers);
    for (int i = 0; i < m->n_steps; i++) {
        machine_step *s = &m->steps[i];
        bool times = s->op == EXP_PRODUCT_DIFFERENCE_TIMES;
        if (!times && s->op != EXP_PRODUCT_DIFFERENCE) continue;
        if (!is_plain(m, s->operand[0]) || !is_plain(m, s->operand[1])) continue;
        if (!is_own_sum(m, early, readers, i, 2)) continue;
        if (times && !is_own_sum(m, early, readers, i, 3)) continue;
        machine_step made = {.op = times ? EXP_PRODUCTS_TIMES : EXP_PRODUCTS};
        memcpy(made.operand, s->operand, 2 * sizeof *made.operand);
        memcpy(made.operand + 2, m->steps[s->operand[2]].operand, 3 * sizeof *made.operand);
        if (times)
            memcpy(made.operand + 5, m->steps[s->operand[3]].operand, 3 * sizeof *made.operand);
        *s = made;
    }
}

/* The last step that reads each step, n_steps for an output, -1 for what nothing reads. Who reads a
 * view reads what it views. */
static void find_last(const machine *m, int *last) {
    for (int i = 0; i < m->n_steps; i++) last[i] = -1;
    for (int i = 0; i < m->n_outputs; i++) last[m->outputs[i]] = m->n_steps;
    for (int i = m->n_steps - 1; i >= 0; i--)
        for (int j = 0; last[i] >= 0 && j < operands_of(m->steps[i].op); j++) {
            int from = m->steps[i].operand[j];
            int reader = m->place[i] == PLACE_VIEW ? last[i] : i;
            if (last[from] < reader) last[from] = reader;
        }
}

/* What has other numbers in every row; a register's rows have their own places. */
static void find_by_row(const machine *m, bool *by_row) {
    for (int i = 0; i < m->n_steps; i++) {
        const machine_step *s = &m->steps[i];
        by_row[i] =
            s->op == LN_LINK_PARAMETER && m->parameters[s->operand[0]].kind == LN_PARAMETER_ROW;
        for (int j = 0; m->place[i] < 0 && j < m->n_operands[i]; j++)
            by_row[i] |= by_row[s->operand[j]];
    }
}

/* Registers are given out in the order of the steps and taken back after their last reader; those
 * of the early steps come first, and stay. */
static void give_registers(machine *m, const bool *early, const int *last) {
    int held[MACHINE_STEPS];
    m->n_registers = 0;
    for (int i = 0; i < m->n_steps; i++)
        if (last[i] >= 0 && early[i] && m->place[i] == 0) m->place[i] = m->n_registers++;
    int kept = m->n_registers;
    for (int r = 0; r < MACHINE_STEPS; r++) held[r] = -1;
    for (int i = 0; i < m->n_steps; i++) {
        if (last[i] < 0 || early[i] || m->place[i] < 0) continue;
        int r = kept; /* a register is free once its step was last read before this one */
        while (held[r] >= 0 && last[held[r]] >= i) r++;
        held[r] = i;
        m->place[i] = r;
        if (r >= m->n_registers) m->n_registers = r + 1;
    }
}

void REAL(machine_prepare)(machine *m) {
    int last[MACHINE_STEPS];
    bool early[MACHINE_STEPS], by_row[MACHINE_STEPS];
    find_early(m, early);
    regroup(m, early);
    find_places(m, early);
    fuse(m, early);
    fuse_sums(m, early);
    for (int i = 0; i < m->n_steps; i++) m->n_operands[i] = operands_of(m->steps[i].op);
    find_last(m, last);
    find_by_row(m, by_row);
    give_registers(m, early, last);
    m->n_live = m->n_early = 0;
    m->similarity = -1;
    for (int i = 0; i < m->n_steps; i++) {
        if (last[i] < 0) continue;
        if (m->steps[i].op == LN_LINK_S) m->similarity = i;
        else if (early[i] || (m->place[i] < 0 && !by_row[i])) m->early[m->n_early++] = i;
        else m->live[m->n_live++] = i;
    }
}
