"use strict";

// The machine is in the address, after #.
const element = document.querySelector("ravada-snapshots");
const vm = location.hash.slice(1);
element.setAttribute("vm", vm);
element.setAttribute("token-url", `/host/token/${vm}`);
