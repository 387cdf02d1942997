/* The line editor of the prompt: libedit and its history file. Evaluates nothing and prints nothing
 * but the line being edited. Invariants: the terminal is in the editor's mode only inside edit();
 * an entry is in the history file as soon as it is remembered, so a killed session loses none. */
#include <errno.h>
#include <histedit.h>
#include <lauxlib.h>
#include <limits.h>
#include <locale.h>
#include <lua.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "program.h"

enum { HISTORY_ENTRIES = 10000 };

static EditLine *editor; /* NULL until the first line is read */
static History *entries;
static char history_file[PATH_MAX]; /* empty: none is kept */
static char prompt[64];

static char *get_prompt(EditLine *e) {
    (void)e;
    return prompt;
}

/* Makes the folders above path, as private as a history should be; false where that fails. */
static bool make_folders(char *path) {
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        bool made = mkdir(path, 0700) == 0 || errno == EEXIST;
        *slash = '/';
        if (!made) return false;
    }
    return true;
}

static void open_history(const char *path) {
    HistEvent event;
    if (!path || strlen(path) >= sizeof history_file) return;
    strcpy(history_file, path);
    if (!make_folders(history_file)) history_file[0] = '\0';
    history(entries, &event, H_LOAD, history_file);
}

static void open_editor(lua_State *L, const char *path) {
    static const char *const keys[][2] = {
        {"\033[3~", "ed-delete-next-char"},
        {"\033[H", "ed-move-to-beg"},
        {"\033[F", "ed-move-to-end"},
        {"^R", "em-inc-search-prev"},
        {"^I", "ed-insert"}, /* pasted code keeps its tabs */
    };
    HistEvent event;
    setlocale(LC_CTYPE, "");
    if (MB_CUR_MAX == 1) setlocale(LC_CTYPE, "C.UTF-8");
    editor = el_init("lunce", stdin, stdout, stderr);
    entries = history_init();
    if (!editor || !entries) luaL_error(L, "the line editor cannot use this terminal");
    history(entries, &event, H_SETSIZE, HISTORY_ENTRIES);
    open_history(path);
    el_set(editor, EL_PROMPT, get_prompt);
    el_set(editor, EL_HIST, history, entries);
    el_set(editor, EL_EDITOR, "emacs");
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        el_set(editor, EL_BIND, keys[i][0], keys[i][1], NULL);
    el_source(editor, NULL);
}

static int edit(lua_State *L) {
    const char *text = luaL_checkstring(L, 1);
    int length;
    if (!editor) open_editor(L, luaL_optstring(L, 2, NULL));
    snprintf(prompt, sizeof prompt, "%s", text);
    el_resize(editor);
    program_editing = 1;
    const char *line = el_gets(editor, &length);
    bool interrupted = !line && length < 0 && errno == EINTR;
    program_editing = 0;
    if (line) {
        while (length > 0 && line[length - 1] == '\n') length--;
        lua_pushlstring(L, line, length);
        return 1;
    }
    lua_pushnil(L);
    lua_pushstring(L, interrupted ? "interrupted" : "end");
    return 2;
}

/* Appends the entry to the file by a history of its own, because libedit's H_NSAVE_FP writes one
 * entry too many. */
static void append_to_file(const char *entry) {
    HistEvent event;
    History *one = history_init();
    FILE *file = one ? fopen(history_file, "a") : NULL;
    if (file) {
        history(one, &event, H_SETSIZE, 1);
        history(one, &event, H_ENTER, entry);
        history(one, &event, H_SAVE_FP, file);
        fclose(file);
    }
    if (one) history_end(one);
}

static int remember(lua_State *L) {
    HistEvent event;
    const char *entry = luaL_checkstring(L, 1);
    history(entries, &event, H_ENTER, entry);
    if (history_file[0]) append_to_file(entry);
    return 0;
}

void program_push_editor(lua_State *L) {
    static const luaL_Reg functions[] = {{"edit", edit}, {"remember", remember}, {NULL, NULL}};
    lua_newtable(L);
    luaL_register(L, NULL, functions);
}
