// Dots of two sizes on cloth, in a wavy grid.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = placed(at, 1.2, 3.0);
    p += 0.2 * sin(1.3 * p.yx + iTime);
    float odd = mod(floor(p.y), 2.0);
    vec2 q = vec2(p.x + 0.5 * odd, p.y), cell = floor(q), f = q - cell - 0.5;
    float size = between(0, 0.15, 0.4) * mix(1.0, dice(cell), random(1)), far = length(f) - size;
    vec3 ground = mix(ink(2), ink(3), 0.5 + 0.5 * sin(TAU * p.y * 0.5)), own = mix(ink(4), dice3(cell), random(5));
    own *= mix(1.0, 1.2 - dot(f, f) * 4.0, random(6));
    colour = vec4(mix(ground, own, inside(far, 0.12)), 1);
}
