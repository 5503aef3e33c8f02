"use strict";

// The machines are in the address, after #, apart by commas.
angular.module("host", []).controller("Machine", function () {
  let digests = 0;
  this.machines = location.hash.slice(1).replace(/^[/!]*/, "").split(",");
  this.vm = this.machines[0];
  this.language = "en";
  this.tab = "settings";
  this.digests = () => (digests > 0 ? digests : (digests += 1));
});
