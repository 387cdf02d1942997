/* A warp of the interpreter of PTX: which of its lanes execute what. Holds branches, calls, and who
 * waits for whom. Invariants: lanes at one place with the same calls are one path; the path with
 * the smallest place runs, so that paths join where the text does; an instruction that lanes
 * execute together waits until all of them are at it, and it is a fault where they cannot come. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "ptx.h"

void ptx_warp::fault(const ptx_instruction &i, int lane, const char *format, ...) {
    char text[320], what[160];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    const std::string &line = block->module->lines[(size_t)i.line - 1];
    size_t tab = line.find('\t');
    std::string source = tab == std::string::npos ? "" : line.substr(0, tab), said = line;
    if (tab != std::string::npos) said = line.substr(tab + 1);
    if (!source.empty()) source = " " + source;
    int n = snprintf(text, sizeof text, "%s:%s block %u, warp %d", what, source.c_str(),
                     block->index, number);
    if (lane >= 0) n += snprintf(text + n, sizeof text - (size_t)n, ", lane %d", lane);
    snprintf(text + n, sizeof text - (size_t)n, ", line %d of the PTX: %.80s", i.line,
             said.c_str());
    throw std::string(text);
}

/* ---- Paths ---- */

static bool joins(const ptx_path &p, const ptx_path &q) {
    return p.pc == q.pc && p.calls == q.calls;
}

/* Joins the path with those at its place. Gives its number then. */
static size_t join(ptx_warp &w, size_t current) {
    for (size_t n = 0; n < w.paths.size();) {
        if (n == current || !joins(w.paths[n], w.paths[current])) {
            n++;
            continue;
        }
        w.paths[current].lanes |= w.paths[n].lanes;
        w.paths[current].waits = false;
        w.paths.erase(w.paths.begin() + (long)n);
        if (n < current) current--;
    }
    return current;
}

static int next_path(const ptx_warp &w) {
    int found = -1;
    for (size_t n = 0; n < w.paths.size(); n++)
        if (!w.paths[n].waits && (found < 0 || w.paths[n].pc < w.paths[(size_t)found].pc))
            found = (int)n;
    return found;
}

/* Some of the path's lanes go on elsewhere. */
static void part(ptx_warp &w, size_t path, uint32_t lanes, int pc) {
    ptx_path other = {pc, lanes, false, w.paths[path].calls};
    w.paths[path].lanes &= ~lanes;
    w.paths.push_back(other);
    join(w, w.paths.size() - 1);
}

[[noreturn]] static void stuck(ptx_warp &w) {
    const ptx_path &p = w.paths[0];
    const ptx_instruction &i = w.block->module->code[(size_t)p.pc];
    if (w.paths.size() == 1)
        w.fault(i, PTX_ALL, "lanes %08x wait for others than the %08x that are left", p.lanes,
                w.live);
    const ptx_path &q = w.paths[1];
    w.fault(i, PTX_ALL, "lanes %08x wait for others, of which %08x wait at line %d", p.lanes,
            q.lanes, w.block->module->code[(size_t)q.pc].line);
}

/* ---- Meetings ---- */

/* The lanes that a masked instruction is for: its last operand, the same of all. */
static uint32_t mask_of(ptx_warp &w, const ptx_instruction &i, uint32_t lanes) {
    ptx_row r = i.in[i.n_in - 1];
    w.need(i, r, lanes, "a mask of lanes is");
    const uint32_t *mask = w.row<uint32_t>(r);
    uint32_t first = mask[__builtin_ctz(lanes)];
    for (int l = 0; l < PTX_LANES; l++)
        if (lanes >> l & 1 && mask[l] != first)
            w.fault(i, l, "a mask %08x where other lanes have %08x", mask[l], first);
    if ((lanes & ~first) != 0)
        w.fault(i, __builtin_ctz(lanes & ~first), "a mask %08x without the lane itself", first);
    return first;
}

/* Whether all have come. */
static bool all_are_there(ptx_warp &w, const ptx_instruction &i, uint32_t lanes) {
    if (i.meeting == PTX_MASKED) return lanes == (mask_of(w, i, lanes) & w.live);
    if (w.live != ~0u) w.fault(i, PTX_ALL, "a warp of which only the lanes %08x are left", w.live);
    return lanes == w.live;
}

/* ---- Steps ---- */

static void copy_all(ptx_warp &w, const std::vector<ptx_copy> &copies, uint32_t lanes) {
    size_t all = (size_t)w.block->module->local_bytes;
    for (int l = 0; l < PTX_LANES; l++)
        for (const ptx_copy &c : copies)
            if (lanes >> l & 1)
                memcpy(w.local.data() + (size_t)l * all + c.to,
                       w.local.data() + (size_t)l * all + c.from, (size_t)c.bytes);
}

/* Lanes leave the function, or end. */
static void leave(ptx_warp &w, size_t path, uint32_t lanes) {
    ptx_path &p = w.paths[path];
    if (p.calls.empty()) {
        w.live &= ~lanes;
        p.lanes &= ~lanes;
        for (ptx_path &q : w.paths) q.waits = false; /* who waited for these need not */
        if (p.lanes == 0) w.paths.erase(w.paths.begin() + (long)path);
        else p.pc++;
        return;
    }
    if (lanes != p.lanes) {
        part(w, path, p.lanes & ~lanes, p.pc + 1);
        return; /* comes here again with all of its lanes */
    }
    const ptx_instruction &call = w.block->module->code[(size_t)p.calls.back()];
    p.pc = p.calls.back() + 1;
    p.calls.pop_back();
    copy_all(w, w.block->module->calls[(size_t)call.offset[0]].after, lanes);
}

static void branch(ptx_warp &w, size_t path, const ptx_instruction &i, uint32_t lanes) {
    ptx_path &p = w.paths[path];
    if (lanes == p.lanes) {
        p.pc = i.target;
    } else {
        p.pc++;
        if (lanes != 0) part(w, path, lanes, i.target);
    }
}

/* The path executes what it is at, or waits there. */
static void step(ptx_warp &w, size_t path) {
    ptx_path &p = w.paths[path];
    const ptx_instruction &i = w.block->module->code[(size_t)p.pc];
    uint32_t lanes = p.lanes;
    if (i.guard != PTX_NONE) {
        w.need(i, i.guard, lanes, "a condition is");
        uint32_t given = *w.row<uint32_t>(i.guard);
        lanes &= i.negated ? ~given : given;
    }
    if (i.control == PTX_BRANCH) {
        branch(w, path, i, lanes);
    } else if (lanes == 0) {
        p.pc++;
    } else if (lanes != p.lanes && (i.meeting != PTX_ALONE || i.control != PTX_PLAIN)) {
        part(w, path, p.lanes & ~lanes, p.pc + 1);
    } else if (i.control == PTX_BARRIER ||
               (i.meeting != PTX_ALONE && !all_are_there(w, i, lanes))) {
        p.waits = true;
    } else if (i.control == PTX_CALL) {
        copy_all(w, w.block->module->calls[(size_t)i.offset[0]].before, lanes);
        p.calls.push_back(p.pc);
        p.pc = i.target;
    } else if (i.control == PTX_RETURN || i.control == PTX_EXIT) {
        if (i.control == PTX_EXIT) p.calls.clear();
        leave(w, path, lanes);
    } else {
        i.run(w, i, lanes);
        p.pc++;
    }
}

void ptx_run_warp(ptx_warp &w, int quantum) {
    while (quantum-- > 0 && !w.paths.empty()) {
        int n = next_path(w);
        if (n < 0) {
            const ptx_path &p = w.paths[0];
            w.at_barrier = w.block->module->code[(size_t)p.pc].control == PTX_BARRIER;
            if (w.paths.size() > 1 || !w.at_barrier) stuck(w);
            return;
        }
        step(w, (size_t)n);
        if (w.paths.size() > 1 && (size_t)n < w.paths.size()) join(w, (size_t)n);
    }
}
