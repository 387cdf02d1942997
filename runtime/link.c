/* Link-function programs: verifying them and bounding their values. Derives nothing (Lua derives)
 * and runs nothing (the backends run). Invariant: a program that ln_link_check accepts reads only
 * earlier steps and existing parameters. */
#include "link.h"

#include <math.h>

/* ORDER LINK: the number of operands. */
static const struct {
    const char *name;
    int operands;
} ops[] = {
    {"s", 0},       {"number", 0},   {"parameter", 0}, {"-", 1},   {"abs", 1},   {"square", 1},
    {"sqrt", 1},    {"exp", 1},      {"expm1", 1},     {"log", 1}, {"log1p", 1}, {"tanh", 1},
    {"sigmoid", 1}, {"softplus", 1}, {"+", 2},         {"-", 2},   {"*", 2},     {"/", 2},
    {"^", 2},       {"min", 2},      {"max", 2},       {"lt", 2},  {"le", 2},    {"gt", 2},
    {"ge", 2},      {"eq", 2},       {"where", 3},
};

int ln_link_operands(int op) {
    return ops[op].operands;
}

ln_status ln_link_check(int n_steps, const ln_link_step *steps, int n_parameters) {
    if (n_steps < 1 || n_steps > LN_LINK_STEPS)
        return ln_fail(LN_BAD_ARGUMENT, "link: %d steps; 1 to %d are taken", n_steps,
                       LN_LINK_STEPS);
    for (int i = 0; i < n_steps; i++) {
        const ln_link_step *s = &steps[i];
        if (s->op < 0 || s->op > LN_LINK_WHERE)
            return ln_fail(LN_BAD_ARGUMENT, "link: step %d: there is no operation %d", i, s->op);
        const int operand[3] = {s->a, s->b, s->c};
        for (int j = 0; j < ops[s->op].operands; j++)
            if (operand[j] < 0 || operand[j] >= i)
                return ln_fail(LN_BAD_ARGUMENT, "link: step %d (%s) reads step %d", i,
                               ops[s->op].name, operand[j]);
        if (s->op == LN_LINK_PARAMETER && (s->a < 0 || s->a >= n_parameters))
            return ln_fail(LN_BAD_ARGUMENT, "link: step %d reads parameter %d of %d", i, s->a,
                           n_parameters);
    }
    return LN_OK;
}

/* ---- Interval arithmetic ---- */

static ln_interval corners(double a, double b, double c, double d) {
    return (ln_interval){fmin(fmin(a, b), fmin(c, d)), fmax(fmax(a, b), fmax(c, d))};
}

/* 0 * inf counts as 0: an infinite bound is a limit that is not taken. */
static double times(double a, double b) {
    return a == 0 || b == 0 ? 0 : a * b;
}

static ln_interval multiply(ln_interval x, ln_interval y) {
    return corners(times(x.low, y.low), times(x.low, y.high), times(x.high, y.low),
                   times(x.high, y.high));
}

static double sigmoid(double x) {
    return x >= 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x));
}

static double softplus(double x) {
    return fmax(x, 0) + log1p(exp(-fabs(x)));
}

static double square_low(ln_interval x) {
    double m = x.low > 0 ? x.low : x.high < 0 ? x.high : 0;
    return m * m;
}

static ln_interval monotone(double (*f)(double), ln_interval x) {
    return (ln_interval){f(x.low), f(x.high)};
}

static ln_interval truth(bool always, bool never) {
    return (ln_interval){always ? 1 : 0, never ? 0 : 1};
}

static ln_interval power(ln_interval x, ln_interval y) {
    if (y.low == y.high && y.low == floor(y.low) && fmod(y.low, 2) == 0 && y.low > 0)
        return (ln_interval){pow(sqrt(square_low(x)), y.low),
                             pow(fmax(fabs(x.low), fabs(x.high)), y.low)};
    return corners(pow(x.low, y.low), pow(x.low, y.high), pow(x.high, y.low), pow(x.high, y.high));
}

/* NULL, or what is wrong with an operation on these bounds and how to write it. */
static const char *domain_fault(int op, ln_interval x, ln_interval y) {
    if (op == LN_LINK_LOG && x.low <= 0)
        return "log's argument must stay above 0: log(max(x, 1e-6)), log(1 - min(s, 1 - 1e-6))";
    if (op == LN_LINK_LOG1P && x.low <= -1)
        return "log1p's argument must stay above -1: log1p(-min(s, 1 - 1e-6))";
    if (op == LN_LINK_SQRT && x.low < 0) return "sqrt's argument must not fall below 0: max(x, 0)";
    if (op == LN_LINK_DIV && y.low <= 0 && y.high >= 0)
        return "the divisor must stay away from 0: max(x, 1e-6)";
    bool whole = y.low == y.high && y.low == floor(y.low);
    if (op == LN_LINK_POW && ((x.low < 0 && !whole) || (x.low <= 0 && x.high >= 0 && y.low < 0)))
        return "the base of a power must stay above 0 here (a gradient has x ^ (y - 1)):"
               " max(x, 1e-6)";
    return NULL;
}

static ln_interval bound_unary(int op, ln_interval x) {
    switch (op) {
    case LN_LINK_NEG: return (ln_interval){-x.high, -x.low};
    case LN_LINK_ABS: return (ln_interval){sqrt(square_low(x)), fmax(fabs(x.low), fabs(x.high))};
    case LN_LINK_SQUARE: return (ln_interval){square_low(x), fmax(x.low * x.low, x.high * x.high)};
    case LN_LINK_SQRT: return monotone(sqrt, x);
    case LN_LINK_EXP: return monotone(exp, x);
    case LN_LINK_EXPM1: return monotone(expm1, x);
    case LN_LINK_LOG: return monotone(log, x);
    case LN_LINK_LOG1P: return monotone(log1p, x);
    case LN_LINK_TANH: return monotone(tanh, x);
    case LN_LINK_SIGMOID: return monotone(sigmoid, x);
    default: return monotone(softplus, x);
    }
}

static ln_interval bound_binary(int op, ln_interval x, ln_interval y) {
    switch (op) {
    case LN_LINK_ADD: return (ln_interval){x.low + y.low, x.high + y.high};
    case LN_LINK_SUB: return (ln_interval){x.low - y.high, x.high - y.low};
    case LN_LINK_MUL: return multiply(x, y);
    case LN_LINK_DIV: return multiply(x, (ln_interval){1 / y.high, 1 / y.low});
    case LN_LINK_POW: return power(x, y);
    case LN_LINK_MIN: return (ln_interval){fmin(x.low, y.low), fmin(x.high, y.high)};
    case LN_LINK_MAX: return (ln_interval){fmax(x.low, y.low), fmax(x.high, y.high)};
    case LN_LINK_LT: return truth(x.high < y.low, x.low >= y.high);
    case LN_LINK_LE: return truth(x.high <= y.low, x.low > y.high);
    case LN_LINK_GT: return truth(x.low > y.high, x.high <= y.low);
    case LN_LINK_GE: return truth(x.low >= y.high, x.high < y.low);
    default:
        return truth(x.low == x.high && y.low == y.high && x.low == y.low,
                     x.high < y.low || x.low > y.high); /* EQ */
    }
}

static ln_interval bound_where(ln_interval c, ln_interval x, ln_interval y) {
    if (c.low > 0) return x;
    if (c.high == 0) return y;
    return (ln_interval){fmin(x.low, y.low), fmax(x.high, y.high)};
}

/* Whether step i is the log of a power's base in the power's derivative by its exponent. */
static bool is_of_power(int n_steps, const ln_link_step *steps, int i) {
    if (steps[i].op != LN_LINK_LOG && steps[i].op != LN_LINK_LOG1P) return false;
    for (int k = i + 1; k < n_steps; k++) {
        if (steps[k].op != LN_LINK_MUL || (steps[k].a != i && steps[k].b != i)) continue;
        const ln_link_step *other = &steps[steps[k].a == i ? steps[k].b : steps[k].a];
        if (other->op != LN_LINK_POW) continue;
        if (steps[i].op == LN_LINK_LOG1P || other->a == steps[i].a) return true;
    }
    return false;
}

/* x, y: the bounds of the operands of step i. */
static ln_status refuse(int n_steps, const ln_link_step *steps, int i, ln_interval x, ln_interval y,
                        const char *fault) {
    int op = steps[i].op;
    if (is_of_power(n_steps, steps, i)) {
        double one = op == LN_LINK_LOG1P;
        return ln_fail(LN_BAD_ARGUMENT,
                       "link: ^ takes bases from %g to %g: where the exponent has a gradient the"
                       " base must stay above 0, for its log is taken: max(x, 1e-6) ^ y, or be"
                       " seen not to fall below 0: relu(x) ^ y, max(x, 0) ^ y",
                       x.low + one, x.high + one);
    }
    if (op == LN_LINK_POW)
        return ln_fail(LN_BAD_ARGUMENT,
                       "link: ^ takes bases from %g to %g and exponents from %g to %g: %s", x.low,
                       x.high, y.low, y.high, fault);
    return ln_fail(LN_BAD_ARGUMENT, "link: %s takes values from %g to %g: %s", ops[op].name, y.low,
                   y.high, fault);
}

ln_status ln_link_bound(ln_interval *bounds, int n_steps, const ln_link_step *steps, ln_interval s,
                        const ln_interval *parameters) {
    for (int i = 0; i < n_steps; i++) {
        const ln_link_step *p = &steps[i];
        int operands = ops[p->op].operands;
        ln_interval x = operands > 0 ? bounds[p->a] : s, y = operands > 1 ? bounds[p->b] : x;
        const char *fault;
        switch (operands) {
        case 0:
            bounds[i] = p->op == LN_LINK_S           ? s
                        : p->op == LN_LINK_PARAMETER ? parameters[p->a]
                                                     : (ln_interval){p->number, p->number};
            break;
        case 3: bounds[i] = bound_where(x, y, bounds[p->c]); break;
        default:
            fault = domain_fault(p->op, x, y);
            if (fault != NULL) return refuse(n_steps, steps, i, x, y, fault);
            bounds[i] = operands == 1 ? bound_unary(p->op, x) : bound_binary(p->op, x, y);
        }
    }
    return LN_OK;
}

ln_status ln_link_bounds(double *lows, double *highs, int n_steps, const ln_link_step *steps,
                         const double *low, const double *high) {
    ln_status status = ln_link_check(n_steps, steps, LN_LINK_PARAMETERS);
    if (status != LN_OK) return status;
    ln_interval bounds[LN_LINK_STEPS], parameters[LN_LINK_PARAMETERS] = {{0}};
    int n_parameters = 0;
    for (int i = 0; i < n_steps; i++)
        if (steps[i].op == LN_LINK_PARAMETER && steps[i].a >= n_parameters)
            n_parameters = steps[i].a + 1;
    for (int p = 0; p < n_parameters; p++) parameters[p] = (ln_interval){low[1 + p], high[1 + p]};
    status = ln_link_bound(bounds, n_steps, steps, (ln_interval){low[0], high[0]}, parameters);
    if (status != LN_OK) return status;
    for (int i = 0; i < n_steps; i++) {
        lows[i] = bounds[i].low;
        highs[i] = bounds[i].high;
    }
    return LN_OK;
}
