// Triangles that each have one colour, on a crooked net.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = placed(at, 1.2, 3.5);
    p += 0.25 * vec2(gradient(p), gradient(p + 40.0));
    vec2 skewed = vec2(p.x + p.y * 0.57735, p.y * 1.1547), cell = floor(skewed), f = skewed - cell;
    float upper = step(1.0, f.x + f.y);
    float tone = dice(cell + vec2(0, 500.0 * upper));
    float edge = min(min(f.x, f.y), min(min(1.0 - f.x, 1.0 - f.y), abs(1.0 - f.x - f.y)));
    vec3 own = mix(palette(tone), palette(noise(0.4 * cell + 0.2 * iTime)) * (0.6 + 0.6 * tone), random(0));
    colour = vec4(mix(own, ink(1), random(2) < 0.4 ? smoothstep(0.12, 0.02, edge) : 0.0), 1);
}
