"""Words and characters that Stanford's PTBTokenizer treats in a way of their own; found by asking it about each.

Not covered: letters of scripts that Unicode got after 2010, which it drops and we keep.
"""

from __future__ import annotations

ABBREVIATIONS = frozenset(
    """
    adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave b bancorp bhd bldg blvd brig bros ca calif
    capt cf cie cmdr co col colo comdr conn corp cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri
    ft ga gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mich
    minn mlle mme mo mon mont mr mrs ms msgr mt natl neb nev nov oct okla penn pfc ph plc pres prof profs pvt rd rep
    reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt sys tel tenn thu thurs treas tue tues univ va vs
    vt wed wis wisc wm wyo
    """.split()  # noqa: SIM905
)
"""Words that keep their dot, in any case; every letter does too."""

CAPITALISED_ABBREVIATIONS = frozenset(("ark", "az", "del", "ill", "la", "mass", "miss", "ore", "pa", "tex", "wash"))
"""Words that keep their dot if they begin with a capital."""

NOT_UPPER_ABBREVIATIONS = frozenset(("mfg", "mtg", "ppte", "ppty", "pte", "ptes", "pty", "ptys"))
"""Words that keep their dot unless all letters are capitals."""

NUMBER_ABBREVIATIONS = ("art", "ca", "fig", "figs", "no", "nos", "op", "pp", "prop")
"""Words that keep their dot before a number."""

SENTENCE_STARTS = frozenset(
    """
    about according additionally after an as at but earlier he her here however if in it last many more now once one
    other our she since so some such that the their then there these they this we what when while yet you
    """.split()  # noqa: SIM905
)
"""Words before which a letter with a dot is the end of a sentence, if they begin with a capital."""

FILE_NAME_ENDINGS = (
    *("bat", "bmp", "c", "class", "cgi", "cpp", "dll", "doc", "docx", "exe", "gif", "gz", "h", "htm", "html", "jar"),
    *("java", "jpeg", "jpg", "mov", "mp3", "pdf", "php", "pl", "png", "ppt", "ps", "py", "sql", "tar", "txt", "wav"),
    *("x", "xml", "zip"),
)

SPLIT_WORDS = (
    *(("can", "not"), ("gon", "na"), ("got", "ta"), ("wan", "na"), ("lem", "me"), ("gim", "me"), ("more", "'n")),
)
"""Words that are two."""

APOSTROPHE_WORDS = (
    *("c'est", "c'mon", "cap'n", "cont'd\\.", "dunkin'", "e'er", "ev'ry", "li'l", "nat'l", "nor'easter", "o'o", "ol'"),
    *("s'mores", "somethin'"),
)
"""Words that are one, as patterns."""

ENTITIES = {
    **{"&md;": "--", "&mdash;": "--", "&ndash;": "--", "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''"},
    **{"&nbsp;": "", "&apos;": "'"},
}
"""Characters in HTML, and what is written for them."""

QUOTES = {
    **{"`": "`", "‘": "`", "\x91": "`", "‛": "`", "‹": "`", "’": "'", "\x92": "'", "›": "'"},
    **{"“": "``", "\x93": "``", "«": "``", "”": "''", "\x94": "''", "»": "''"},
    **{"‚": "‚", "\x82": "\x82", "„": "„", "\x84": "\x84", "‟": "‟"},
}
"""Quotation marks, and what is written for them."""

WRITTEN = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", '"': "''"},
    **{"¢": "cents", "£": "#", "\x80": "$", "¤": "$", "\u20a0": "$", "€": "$"},
    **{"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"},
    **{"–": "--", "—": "--", "―": "--", "\x96": "--", "\x97": "--", "…": "...", "\xad": "-"},
}
"""Symbols for which others are written."""

MARKS = (
    "\u00ad\u02c2-\u02c5\u02d2-\u02df\u02e5-\u02eb\u02ed\u02ef-\u036f\u0375\u0384\u0385\u03f6\u0483-\u0487\u055a-\u055f"
    "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0615-\u061a\u064b-\u065e\u0670\u06d6-\u06e4\u06e7-\u06ed\u06fd"
    "\u06fe\u070f\u0711\u0730-\u074c\u07a6-\u07b0\u07eb-\u07f3\u0900-\u0903\u093c\u093e-\u094e\u0951-\u0955\u0962\u0963"
    "\u0981-\u0983\u09bc\u09be-\u09c4\u09c7\u09c8\u09cb-\u09cd\u09d7\u09e2\u09e3\u0a01-\u0a03\u0a3c\u0a3e-\u0a4f"
    "\u0a81-\u0a83\u0abc\u0abe-\u0acf\u0b82\u0bbe-\u0bc2\u0bc6-\u0bc8\u0bca-\u0bcd\u0c01-\u0c03\u0c3e-\u0c56"
    "\u0d3e-\u0d44\u0d46-\u0d48\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd"
)
"""Characters that are part of words without being letters, as ranges of a pattern."""

SYMBOLS = (
    r"""-!"#$%&()*+,./:;<=>?@\[\\\]^_`{|}~"""
    "\x80\x96\x97\xad\xa1-\xa9\xab\xac\xae-\xb4\xb6-\xb9\xbb-\xbf\xd7\xf7\u037e\u0387\u0589\u05be\u05c0\u05c3\u05c6\u05f3\u05f4"
    "\u0600-\u0603\u0606-\u060c\u0614\u061b\u061e\u061f\u066a\u066d\u06d4\u0700-\u070d\u07f6-\u07f8\u0964\u0965\u0e3f"
    "\u0e4f\u1fbd\u2013-\u2023\u2026\u2030-\u203b\u203e-\u2042\u2044\u2070\u2074-\u207e\u2080-\u208e\u20a0\u20a4\u20ac"
    "\u2100\u2101\u2103-\u2106\u2108\u2109\u2114\u2116-\u2118\u211e-\u2123\u2125\u2127\u2129\u212e\u213a\u213b"
    "\u2140-\u2144\u214a-\u214d\u214f\u2153-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20"
    "\uff3b-\uff40\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6"
)
"""Characters that are words alone, as ranges of a pattern. Others that are no part of words are dropped."""
