/* The program's C half: a Lua state, the way to lualib, protected calls and Ctrl-C. What the
 * command line and the prompt mean is Lua (lualib/lunce/repl). Invariants: user code runs only
 * inside protected_call, which alone clears an interrupt, so no pcall of the user's can lose one;
 * only the main thread touches the Lua state, signal handlers included. */
#include <lauxlib.h>
#include <limits.h>
#include <lua.h>
#include <lualib.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "program.h"

/* ---- Ctrl-C --------------------------------------------------------------------------------- */

enum {
    EXIT_INTERRUPTED = 130,
    /* Instructions between the first "interrupted" and the next: enough for library code to restore
     * its state on the way out, about a millisecond. From then on every instruction raises. */
    GRACE = 100000
};

volatile sig_atomic_t program_editing;
static volatile sig_atomic_t interrupts; /* since the last protected_call ended */
static bool grace_used;
static lua_State *state;
static pthread_t main_thread;
static void (*volatile library_interrupt)(void); /* NULL until the library is loaded */
static void (*volatile library_clear)(void);

static void interrupt_hook(lua_State *L, lua_Debug *at) {
    (void)at;
    lua_sethook(L, interrupt_hook, LUA_MASKCOUNT, grace_used ? 1 : GRACE);
    grace_used = true;
    lua_pushliteral(L, "interrupted");
    lua_error(L);
}

static void on_interrupt(int signal_number) {
    if (!pthread_equal(pthread_self(), main_thread)) {
        pthread_kill(main_thread, signal_number);
        return;
    }
    if (program_editing) return;
    if (interrupts) _exit(EXIT_INTERRUPTED);
    interrupts = 1;
    if (library_interrupt) library_interrupt();
    lua_sethook(state, interrupt_hook, LUA_MASKCOUNT, 1);
}

/* program.library_loaded(interrupt, clear): the addresses of ln_interrupt and ln_interrupt_clear,
 * as numbers (user addresses have 47 bits). */
static int library_loaded(lua_State *L) {
    library_clear = (void (*)(void))(uintptr_t)luaL_checknumber(L, 2);
    library_interrupt = (void (*)(void))(uintptr_t)luaL_checknumber(L, 1);
    return 0;
}

/* ---- Protected calls ------------------------------------------------------------------------ */

static int call_depth; /* stack levels below the innermost protected call */

static int stack_levels(lua_State *L) {
    lua_Debug level;
    int n = 0;
    while (lua_getstack(L, n, &level)) n++;
    return n;
}

/* The message, with a traceback down to the protected call. */
static int message_handler(lua_State *L) {
    if (!lua_isstring(L, 1)) {
        if (!luaL_callmeta(L, 1, "__tostring"))
            lua_pushfstring(L, "(error object is a %s value)", luaL_typename(L, 1));
        lua_replace(L, 1);
        lua_settop(L, 1);
    }
    luaL_traceback(L, L, lua_tostring(L, 1), 1);
    size_t length;
    const char *text = lua_tolstring(L, -1, &length);
    for (int lines = call_depth; lines > 0 && length > 0; lines--) {
        do length--;
        while (length > 0 && text[length] != '\n');
    }
    lua_pushlstring(L, text, length);
    return 1;
}

/* Calls the function under its n arguments; leaves true and its results, or false, the message and
 * whether Ctrl-C was the cause. Ends with no interrupt pending. */
static int protected_call(lua_State *L, int n) {
    int outer_depth = call_depth, base = lua_gettop(L) - n;
    call_depth = stack_levels(L);
    lua_pushcfunction(L, message_handler);
    lua_insert(L, base);
    bool ok = lua_pcall(L, n, LUA_MULTRET, base) == 0;
    bool interrupted = interrupts;
    lua_sethook(L, NULL, 0, 0);
    if (interrupted && library_clear) library_clear();
    interrupts = 0;
    grace_used = false;
    call_depth = outer_depth;
    lua_pushboolean(L, ok);
    lua_replace(L, base);
    if (!ok) lua_pushboolean(L, interrupted);
    return lua_gettop(L) - base + 1;
}

/* program.call(f, ...) -> true, results | false, message, interrupted */
static int call(lua_State *L) {
    luaL_checkany(L, 1);
    return protected_call(L, lua_gettop(L) - 1);
}

/* program.dialogue(turn): calls turn() until it returns true. Ctrl-C ends a turn, an error the
 * dialogue. The loop is here because no hook can interrupt C. */
static int dialogue(lua_State *L) {
    for (;;) {
        lua_settop(L, 1);
        lua_pushvalue(L, 1);
        protected_call(L, 0);
        bool ok = lua_toboolean(L, 2);
        if (ok && lua_toboolean(L, 3)) return 0;
        if (!ok && !lua_toboolean(L, 4)) {
            lua_settop(L, 3);
            return lua_error(L);
        }
        if (!ok) fputs("interrupted\n", stderr);
    }
}

/* ---- Start ---------------------------------------------------------------------------------- */

/* Puts lualib's absolute path into `path`: beside the program in a relocatable folder, else where
 * installations, build/ and build/<variant>/ have it. */
static bool find_lualib(char path[PATH_MAX]) {
    static const char *const places[] = {"lualib", "../share/lunce/lualib", "../lualib",
                                         "../../lualib"};
    char program[PATH_MAX], candidate[2 * PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length < 0) return false;
    program[length] = '\0';
    *strrchr(program, '/') = '\0';
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        snprintf(candidate, sizeof candidate, "%s/%s/lunce/repl/command.lua", program, places[i]);
        if (access(candidate, R_OK) != 0) continue;
        snprintf(candidate, sizeof candidate, "%s/%s", program, places[i]);
        return realpath(candidate, path) != NULL;
    }
    return false;
}

/* Pushes the table that lualib/lunce/repl/command.lua is called with. */
static void push_program(lua_State *L, const char *lualib) {
    static const luaL_Reg functions[] = {
        {"call", call}, {"dialogue", dialogue}, {"library_loaded", library_loaded}, {NULL, NULL}};
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    lua_pushstring(L, lualib);
    lua_setfield(L, -2, "lualib");
    lua_pushliteral(L, LUNCE_VERSION);
    lua_setfield(L, -2, "version");
    lua_pushboolean(L, isatty(STDIN_FILENO));
    lua_setfield(L, -2, "stdin_is_terminal");
    lua_pushboolean(L, isatty(STDIN_FILENO) && isatty(STDOUT_FILENO));
    lua_setfield(L, -2, "terminal");
    program_push_editor(L);
    lua_setfield(L, -2, "editor");
}

/* Runs command.lua(program, arguments); returns the exit status. */
static int run(lua_State *L, int argc, char **argv) {
    char lualib[PATH_MAX];
    if (!find_lualib(lualib)) {
        fprintf(stderr, "lunce: lualib is not where the program looks for it\n");
        return EXIT_FAILURE;
    }
    luaL_openlibs(L);
    lua_settop(L, 0);
    lua_pushfstring(L, "%s/lunce/repl/command.lua", lualib);
    if (luaL_loadfilex(L, lua_tostring(L, 1), "t") != 0) {
        fprintf(stderr, "lunce: %s\n", lua_tostring(L, 2));
        return EXIT_FAILURE;
    }
    push_program(L, lualib);
    lua_createtable(L, argc, 0);
    for (int i = 0; i < argc; i++) {
        lua_pushstring(L, argv[i]);
        lua_rawseti(L, -2, i);
    }
    protected_call(L, 2);
    if (lua_toboolean(L, 2)) return (int)lua_tointeger(L, 3);
    fprintf(stderr, "lunce: %s\n", lua_tostring(L, 3));
    return lua_toboolean(L, 4) ? EXIT_INTERRUPTED : EXIT_FAILURE;
}

int main(int argc, char **argv) {
    struct sigaction action = {.sa_handler = on_interrupt};
    main_thread = pthread_self();
    state = luaL_newstate();
    if (!state) {
        fprintf(stderr, "lunce: no memory for a Lua state\n");
        return EXIT_FAILURE;
    }
    sigaction(SIGINT, &action, NULL);
    int status = run(state, argc, argv);
    action.sa_handler = SIG_DFL;
    sigaction(SIGINT, &action, NULL);
    lua_close(state);
    return status;
}
