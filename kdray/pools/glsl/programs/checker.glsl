// A board that is bent, with light from one corner.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = placed(at, 1.2, 3.5);
    p += between(0, 0.0, 0.7) * sin(p.yx * between(1, 0.5, 1.5) + iTime);
    vec2 cell = floor(p), f = abs(fract(p) - 0.5);
    float odd = mod(cell.x + cell.y, 2.0);
    vec3 tile = mix(ink(2), ink(3), odd) + 0.25 * random(4) * (dice(cell) - 0.5);
    float light = 0.8 + 0.35 * dot(centred(at), vec2(cos(TAU * random(5)), sin(TAU * random(5))));
    colour = vec4(tile * light * mix(1.0, 1.2 - f.x - f.y, random(6)), 1);
}
